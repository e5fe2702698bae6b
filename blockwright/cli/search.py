"""Choose the blocks: the least loss of quality within the budgets, proven optimal.

Reads scores and profiles, loads no torch, and writes plan.json: the blocks, what they are promised to cost, what each
budget is worth, and the certificate.

A budget bounds time_to_first_token (ttft), time_per_token (tpot), request_latency, throughput, memory, disk, energy or
parameters, at a load on a device, in its unit or as a share of the parent's cost, from above, from below or both:

  blockwright search --scores scores.parquet --profile profile \\
      --budget 'time_per_token@chat <= 60%' --budget 'memory@chat <= 12MB'

Several devices and loads at once; a load with several batches leaves the batch to the search:

  blockwright search --scores scores.parquet --profile server=a.json --profile edge=b.json \\
      --load chat=1x128+128 --load serve=1,4,16x512+128 \\
      --budget 'memory@server:serve <= 20GB' --budget 'throughput@server:serve >= 100tok/s' \\
      --budget 'time_per_token@edge:chat <= 25ms' --servable-by vllm,llama.cpp --pool 16 --differ 2

The frontier between any two quantities, the other budgets kept; against a cost, the score is bounded by --most-score:

  blockwright search --scores scores.parquet --profile profile --budget 'memory@chat <= 12MB' \\
      --frontier 40 --along time_per_token@chat --against memory@chat --most-score 0.3
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import (
    ALL_BACKENDS,
    add_out,
    add_rules,
    add_search_loads,
    add_solving,
    check_finite,
    explaining,
    read_rules,
    read_search_loads,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("--scores", type=Path, required=True, help="the table that `blockwright score` wrote")
    parser.add_argument(
        "--profile",
        action="append",
        required=True,
        metavar="[NAME=]PROFILE",
        help="a profile's file, or the name of one that ships; repeatable: the first is the main device",
    )
    parser.add_argument("--budget", action="append", required=True, help="such as 'memory@chat <= 12MB'; repeatable")
    add_search_loads(parser)
    parser.add_argument(
        "--format", action="append", help="that layers may be stored in; repeatable (default: fp32; TensorRT's fp16)"
    )
    parser.add_argument("--metric", default="kl", help="which scores to go by (default: kl)")
    add_rules(parser)
    add_solving(parser, ALL_BACKENDS)
    _add_more_answers(parser)
    parser.add_argument(
        "--trials",
        type=int,
        default=0,
        metavar="PROCESSES",
        help="time the chosen child, with random weights, beside its parent on this machine in so many processes, "
        "4 or more, and choose again where it is over a budget of time at its slowest; 8 take some 20 s; writes "
        "tried-PLAN.json and profile-tried-PLAN beside the plan (default: 0, go by the profile alone)",
    )
    parser.add_argument("--compare", action="store_true", help="put simpler ways to choose beside the plan")
    add_out(parser, "plan.json", "the plan")


def _add_more_answers(parser: argparse.ArgumentParser) -> None:
    """The flags for frontiers and pools."""
    more = parser.add_argument_group("more than one answer", "Each of them says whether it is proven.")
    more.add_argument(
        "--frontier", type=int, default=16, metavar="POINTS", help="of the frontier, 0 for none (default: 16)"
    )
    more.add_argument(
        "--along",
        default="",
        metavar="QUANTITY@LOAD",
        help="the frontier's first axis, such as memory@chat, or the text of a budget; other budgets are kept "
        "(default: the first budget from above)",
    )
    more.add_argument(
        "--against",
        default="score",
        metavar="QUANTITY@LOAD",
        help="its second axis: score, or such as time_per_token@chat (default: score)",
    )
    more.add_argument(
        "--most-score",
        type=float,
        metavar="SCORE",
        help="the most that scores may sum to in a frontier against a cost, which else gives quality away",
    )
    more.add_argument("--pool", type=int, default=1, metavar="PLANS", help="so many good plans (default: 1)")
    more.add_argument("--differ", type=int, default=1, metavar="LAYERS", help="any two in so many layers (default: 1)")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.compile.tensorrt_stored import FORMATS, check_choices
    from blockwright.pipeline.recipe import check_above_zero, check_at_least, check_formats
    from blockwright.pipeline.search import SearchOrder, search_plan
    from blockwright.pipeline.tables import print_plan
    from blockwright.pipeline.tried import LEAST_PROCESSES, TryOrder, search_tried
    from blockwright.servable import BUILDABLE
    from blockwright.spec import parse_format

    is_tensorrt = arguments.backend == "tensorrt"
    formats = arguments.format or ["fp16" if is_tensorrt else "fp32"]
    if is_tensorrt:
        check_formats("--format", formats, tuple(dict.fromkeys([*FORMATS, *BUILDABLE])))
        check_choices([parse_format(text) for text in formats])
    else:
        check_formats("--format", formats, remedy="Choose one of these; fp16 and bf16 are for --backend tensorrt.")
    check_above_zero("--time-limit", arguments.time_limit)
    check_finite(arguments, ("tolerance", "most_score"))
    for field, least in (("frontier", 0), ("pool", 1), ("differ", 1), ("tolerance", 0), ("trials", 0)):
        check_at_least(f"--{field.replace('_', '-')}", getattr(arguments, field), least)
    if arguments.trials:
        check_at_least("--trials", arguments.trials, LEAST_PROCESSES)
    order = SearchOrder(
        loads=read_search_loads(arguments.load),
        budgets=tuple(arguments.budget),
        formats=tuple(formats),
        backend=arguments.backend,
        time_limit_s=arguments.time_limit,
        frontier_points=arguments.frontier,
        metric=arguments.metric,
        rules=read_rules(arguments),
        may_extrapolate=arguments.extrapolate,
        tolerance=arguments.tolerance,
        pool_size=arguments.pool,
        min_layers_differ=arguments.differ,
        compares=arguments.compare,
        along=arguments.along,
        against=arguments.against,
        most_score=arguments.most_score,
    )
    trial = TryOrder(
        name=f"tried-{arguments.out.stem}", parent_format=parse_format(formats[0]), processes=arguments.trials
    )
    with explaining(arguments):
        if arguments.trials:
            plan = search_tried(arguments.scores, arguments.profile, order, trial, arguments.out)
        else:
            plan = search_plan(arguments.scores, arguments.profile, order, arguments.out)
    if arguments.json:
        print(arguments.out.read_text(), end="")
    else:
        print_plan(plan)
