"""Measure an engine beside another one, in turn: time per token, time to first token, memory.

Examples:
  blockwright measure engine --against parent-engine --load chat=1x128+128
  blockwright measure engine --against parent-engine --plan plan.json      # beside what the plan promised
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_loads, read_loads


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("engine", type=Path, help="the engine's folder")
    parser.add_argument("--against", type=Path, required=True, help="the engine to compare with, mostly the parent's")
    parser.add_argument("--plan", type=Path, help="show its promises, at its loads")
    add_loads(parser)
    parser.add_argument("--seconds", type=float, default=1.5, help="to measure each engine for (default: 1.5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.measure import check_promises_hold_here, measure_costs
    from blockwright.pipeline.recipe import check_above_zero
    from blockwright.pipeline.tables import print_costs
    from blockwright.search.plan import read_plan
    from blockwright.strict import to_data

    check_above_zero("--seconds", arguments.seconds)
    plan = read_plan(arguments.plan) if arguments.plan else None
    if plan is not None:
        check_promises_hold_here(plan, arguments.engine, arguments.against)
    loads = plan.loads if plan else read_loads(arguments.load)
    costs = measure_costs((arguments.against, arguments.engine), loads, arguments.seconds)
    if arguments.json:
        import json

        print(json.dumps(to_data(costs), indent=1))
    else:
        print_costs(costs, plan)
