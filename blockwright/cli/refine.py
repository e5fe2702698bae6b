"""Go beyond sums of scores: measure whole plans, score candidates again around the best, search again.

A score says what one candidate loses in the parent; in a child from which much was taken it loses something else. This
measures whole children, undistilled, on other text than the scores come from: the plan of the best sum, a pool of good
ones, those of simpler ways to choose; then what every candidate changes in the best of them, which gives the next
plans, and so on. Writes a plan like `blockwright search`, and refine.json with every plan that was measured and how far
sums were off. On the text that chose it lost no more than the best sum's; what both lose on text that chose neither is
what the plan says.

  blockwright refine library --scores scores.parquet --profile profile --text texts/ \\
      --budget 'time_per_token@chat <= 60%' --out refined.json

With --heal-tokens the best plans are distilled for a while, by halving, and the one that is best after that is taken,
which may have lost more before it.
"""

import argparse
import math
from pathlib import Path

from blockwright.cli.flags import (
    add_out,
    add_rules,
    add_search_loads,
    add_solving,
    add_text,
    check_finite,
    explaining,
    read_rules,
    read_search_loads,
    read_tokens,
)
from blockwright.errors import InputError
from blockwright.units import parse_quantity


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("library", type=Path, help="the folder that `blockwright library` wrote")
    parser.add_argument("--parent", help="where the parent is (default: where it was when the library was built)")
    parser.add_argument("--scores", type=Path, required=True, help="the table that `blockwright score` wrote")
    parser.add_argument("--profile", action="append", required=True, metavar="[NAME=]PROFILE", help="as for search")
    parser.add_argument("--budget", action="append", required=True, help="as for search; repeatable")
    add_search_loads(parser)
    add_text(parser)
    parser.add_argument("--tokens", default="16k", help="to measure a plan on, and the chosen again (default: 16k)")
    parser.add_argument("--rounds", type=int, default=4, help="at most so many (default: 4)")
    parser.add_argument("--pool", type=int, default=8, metavar="PLANS", help="to begin with (default: 8)")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of candidates to measure (default: 0)")
    parser.add_argument("--heal-tokens", default="0", help="to distil the last plan for (default: 0, none is)")
    parser.add_argument("--format", default="fp32", help="of the engine (default: fp32)")
    parser.add_argument("--metric", default="kl", help="which scores to begin with (default: kl)")
    add_rules(parser)
    add_solving(parser)
    add_out(parser, "refined.json", "the plan")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.library import read_library
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.refine import RefineOrder, refine_plan
    from blockwright.pipeline.search import SearchOrder
    from blockwright.pipeline.tables import print_plan

    _check(arguments)
    order = RefineOrder(
        text=arguments.text,
        window_tokens=arguments.window,
        tokens=read_tokens(arguments),
        seed=arguments.seed,
        rounds=arguments.rounds,
        pool_size=arguments.pool,
        pairs=arguments.pairs,
        heal_tokens=_read_heal_tokens(arguments.heal_tokens),
    )
    searched = SearchOrder(
        loads=read_search_loads(arguments.load),
        budgets=tuple(arguments.budget),
        formats=(arguments.format,),
        backend=arguments.backend,
        time_limit_s=arguments.time_limit,
        frontier_points=0,
        metric=arguments.metric,
        rules=read_rules(arguments),
        may_extrapolate=arguments.extrapolate,
        tolerance=arguments.tolerance,
    )
    parent = open_parent(arguments.parent or read_library(arguments.library).parent_folder)
    paths = {"library": arguments.library, "scores": arguments.scores, "output": arguments.out}
    with explaining(arguments):
        plan = refine_plan(parent, paths, arguments.profile, searched, order)
    if arguments.json:
        print(arguments.out.read_text(), end="")
    else:
        print_plan(plan)


def _check(arguments: argparse.Namespace) -> None:
    from blockwright.pipeline.recipe import check_above_zero, check_at_least, check_formats

    check_formats("--format", [arguments.format])
    check_above_zero("--time-limit", arguments.time_limit)
    check_at_least("--rounds", arguments.rounds, 0)
    check_at_least("--pool", arguments.pool, 1)
    check_at_least("--pairs", arguments.pairs, 0)
    check_finite(arguments, ("tolerance",))
    check_at_least("--tolerance", arguments.tolerance, 0)


def _read_heal_tokens(text: str) -> int:
    tokens = parse_quantity(text, "tokens", "--heal-tokens")
    if tokens == math.inf:
        raise InputError("--heal-tokens", got=text, expected="a finite number", remedy="Ask for fewer tokens.")
    return int(tokens)
