"""Choose the blocks: the least loss of quality within the budgets, proven optimal.

Reads scores and a profile, loads no torch, and writes plan.json: the blocks, what they are promised to cost, and the
certificate. A budget bounds time_per_token, time_to_first_token, memory or parameters at a load, in its unit or as a
share of the parent's cost.

  blockwright search --scores scores.parquet --profile profile.json \\
      --budget 'time_per_token@chat <= 60%' --budget 'memory@chat <= 12MB'
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_loads, add_out, read_loads


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("--scores", type=Path, required=True, help="the table that `blockwright score` wrote")
    parser.add_argument("--profile", required=True, help="a profile's file, or the name of one that ships")
    parser.add_argument("--budget", action="append", required=True, help="such as 'memory@chat <= 12MB'; repeatable")
    add_loads(parser)
    parser.add_argument("--format", default="fp32", help="weight format (default: fp32)")
    parser.add_argument("--backend", default="onnxruntime", choices=("onnxruntime", "torch"))
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS", help="of a solve (default: 60)")
    parser.add_argument("--frontier", type=int, default=16, metavar="POINTS", help="of the frontier (default: 16)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON instead of a table")
    add_out(parser, "plan.json", "the plan")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.recipe import check_above_zero, check_at_least, check_formats
    from blockwright.pipeline.search import SearchOrder, search_plan
    from blockwright.pipeline.tables import print_plan

    check_formats("--format", [arguments.format])
    check_above_zero("--time-limit", arguments.time_limit)
    check_at_least("--frontier", arguments.frontier, 0)
    order = SearchOrder(
        loads=read_loads(arguments.load),
        budgets=tuple(arguments.budget),
        format=arguments.format,
        backend=arguments.backend,
        time_limit_s=arguments.time_limit,
        frontier_points=arguments.frontier,
    )
    plan = search_plan(arguments.scores, arguments.profile, order, arguments.out)
    if arguments.json:
        print(arguments.out.read_text(), end="")
    else:
        print_plan(plan)
