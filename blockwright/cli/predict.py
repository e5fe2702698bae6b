"""Tell what a model will cost on devices, measured or known by their datasheets.

Takes a plan, a child's folder, a checkpoint's, or --parent alone, and prints every cost at every load with its interval
and its origin, beside the parent's. Devices need not be at hand: a profile's folder, or a name that ships.

  blockwright predict plan.json --profile profile --profile h100_sxm --load chat=1x128+128
  blockwright predict --parent path/to/parent --format int4 --profile jetson_agx_orin
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from blockwright.cli.flags import ALL_BACKENDS, add_loads, read_loads
from blockwright.errors import InputError

if TYPE_CHECKING:
    from blockwright.search.plan import Plan
    from blockwright.spec import Model


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("model", nargs="?", help="a plan, or a checkpoint's or a child's folder")
    parser.add_argument("--parent", help="the checkpoint that it stands beside (default: the plan's own parent)")
    parser.add_argument(
        "--profile",
        action="append",
        required=True,
        metavar="[NAME=]PROFILE",
        help="a profile's folder, or the name of one that ships, such as h100_sxm; repeatable",
    )
    add_loads(parser)
    parser.add_argument(
        "--format",
        help="of a checkpoint's layers, such as bf16 (default: fp32, for tensorrt fp16; a plan says its own)",
    )
    parser.add_argument("--backend", choices=ALL_BACKENDS, help="(default: the plan's, or onnxruntime)")
    parser.add_argument("--extrapolate", action="store_true", help="allow what lies beyond the measured, less certain")
    parser.add_argument("--json", action="store_true", help="print records as JSON instead of tables")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.console import say
    from blockwright.pipeline.cost_tables import print_predictions
    from blockwright.pipeline.predict import PredictOrder, predict_costs, predictions_to_data, untold
    from blockwright.pipeline.search import read_devices

    plan = _plan(arguments)
    model, parent = _models(arguments, plan)
    order = PredictOrder(
        model=model,
        parent=parent,
        devices=read_devices(arguments.profile),
        loads=read_loads(arguments.load) if plan is None or arguments.load else plan.loads,
        backend=arguments.backend or (plan.backend if plan is not None else "onnxruntime"),
        may_extrapolate=arguments.extrapolate,
    )
    found = predict_costs(order)
    if arguments.json:
        print(json.dumps(predictions_to_data(order, found), indent=1))
    else:
        print_predictions(order, found)
    for line in untold(order):
        say(line)


def _plan(arguments: argparse.Namespace) -> "Plan | None":
    from blockwright.search.plan import read_plan

    if arguments.model is None or not arguments.model.endswith(".json"):
        return None
    given = [flag for flag in ("format", "parent") if getattr(arguments, flag) is not None]
    if given:
        raise InputError(
            f"--{given[0]}",
            got=f"{getattr(arguments, given[0])} beside a plan",
            expected="nothing: a plan says its parent and the format of each layer",
            remedy="Leave it out.",
        )
    return read_plan(Path(arguments.model))


def _models(arguments: argparse.Namespace, plan: "Plan | None") -> "tuple[Model, Model | None]":
    """What to tell of, and what it stands beside."""
    if plan is not None:
        return plan.child, plan.parent
    from blockwright.pipeline.inputs import open_checkpoint
    from blockwright.spec import parse_format, with_format

    if arguments.model is None and arguments.parent is None:
        raise InputError(
            "model",
            got="none",
            expected="a plan, a checkpoint's folder, or --parent",
            remedy="Name one: blockwright predict plan.json --profile PROFILE",
        )
    default = "fp16" if arguments.backend == "tensorrt" else "fp32"
    weights = parse_format(default if arguments.format is None else arguments.format)
    named = [name for name in (arguments.model, arguments.parent) if name is not None]
    specs = [with_format(open_checkpoint(name).spec, weights) for name in named]
    return specs[0], specs[1] if len(specs) > 1 else None
