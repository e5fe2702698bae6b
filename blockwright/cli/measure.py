"""Measure an engine beside another one, in turn: time per token, time to first token, memory.

Both for onnxruntime, on the CPU, or both for tensorrt, on the GPU.

Examples:
  blockwright measure engine --against parent-engine --load chat=1x128+128
  blockwright measure engine --against parent-engine --plan plan.json      # beside what the plan promised
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from blockwright.cli.flags import add_loads, read_loads

if TYPE_CHECKING:
    from blockwright.cost import Load
    from blockwright.measured import MeasuredCost
    from blockwright.search.plan import Plan


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
    from blockwright.pipeline.recipe import check_above_zero
    from blockwright.pipeline.tables import print_costs
    from blockwright.search.plan import read_plan
    from blockwright.strict import to_data

    check_above_zero("--seconds", arguments.seconds)
    plan = read_plan(arguments.plan) if arguments.plan else None
    loads = plan.loads if plan else read_loads(arguments.load)
    is_tensorrt = _share_a_runtime(arguments.engine, arguments.against) == "tensorrt"
    costs = (_of_tensorrt if is_tensorrt else _of_onnxruntime)(arguments, plan, loads)
    if arguments.json:
        import json

        print(json.dumps(to_data(costs), indent=1))
    else:
        print_costs(costs, plan)


def _of_onnxruntime(
    arguments: argparse.Namespace, plan: "Plan | None", loads: "Mapping[str, Load]"
) -> "list[MeasuredCost]":
    from blockwright.pipeline.measure import check_promises_hold_here, measure_costs

    if plan is not None:
        check_promises_hold_here(plan, arguments.engine, arguments.against)
    return measure_costs((arguments.against, arguments.engine), loads, arguments.seconds)


def _of_tensorrt(
    arguments: argparse.Namespace, plan: "Plan | None", loads: "Mapping[str, Load]"
) -> "list[MeasuredCost]":
    from blockwright.compile.tensorrt_engine import read_tensorrt_engine
    from blockwright.pipeline.measure_tensorrt import (
        check_tensorrt_promises_hold_here,
        gpu_name,
        measure_tensorrt_costs,
    )

    if plan is not None:
        check_tensorrt_promises_hold_here(plan, read_tensorrt_engine(arguments.engine), gpu_name())
    return measure_tensorrt_costs((arguments.against, arguments.engine), loads, arguments.seconds)


def _share_a_runtime(engine: Path, against: Path) -> str:
    """Who runs both.

    Raises:
        InputError: two run them, or one of them is no engine.
    """
    from blockwright.compile.described import engine_target
    from blockwright.errors import InputError

    targets = [engine_target(folder) for folder in (engine, against)]
    if targets[0] != targets[1]:
        raise InputError(
            "engine, --against",
            got=f"one for {targets[0]} and one for {targets[1]}",
            expected="two that the same runtime runs: what a child costs is told beside its parent",
            remedy=f"Compile both with --target {targets[0]}.",
        )
    return targets[0]
