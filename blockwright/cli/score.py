"""Score every candidate of a library: what the parent loses when that one takes its place.

Writes a Parquet table with a row for each candidate and metric: how much worse the parent is with it, and how well that
is known. The metrics, all from the same passes and lower the better:

  kl                    KL divergence from the parent, in nats per token
  lm_loss               nats per token on the text itself, the child's less the parent's; may be below 0
  task                  with --task: what the right choice's -ln share grows by. A line of the file is an item:
                        {"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}
  path/to/file.py:name  a function of yours, name(logits_BTV, ids_BT) -> values_B with a number per window; the child's
                        less the parent's

Examples:
  blockwright score library --text texts/ --tokens 16k --out scores.parquet
  blockwright score library --text texts/ --metric kl --metric lm_loss --task items.jsonl
  blockwright score library --text texts/ --metric my_metric.py:wrong_digits
  blockwright score library --text texts/ --format fp32 --format int4
  blockwright score library --text texts/ --format fp16 --format int4     # what TensorRT's layers may be stored in

Weights are rounded as engines store them; what is computed with them is in fp32, so what an engine loses by computing
in fp16 or bf16, as TensorRT's do, is in no score.

With budgets it is a race: all candidates are scored on an eighth of the tokens, and more are spent only on those that
the plan within these budgets still hangs on:

  blockwright score library --text texts/ --profile profile --budget 'time_per_token@chat <= 60%'
"""

import argparse
from dataclasses import replace
from pathlib import Path

from blockwright.cli.cluster import add_ray, scoring_by
from blockwright.cli.flags import (
    ALL_BACKENDS,
    add_out,
    add_rules,
    add_search_loads,
    add_text,
    read_rules,
    read_search_loads,
    read_tokens,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("library", type=Path, help="the folder that `blockwright library` wrote")
    parser.add_argument("--parent", help="where the parent is (default: where it was when the library was built)")
    add_text(parser)
    parser.add_argument("--tokens", default="16k", help="to score on (default: 16k)")
    parser.add_argument(
        "--metric",
        action="append",
        default=None,
        help="kl, lm_loss, or a function of yours as path/to/file.py:name; repeatable (default: kl)",
    )
    parser.add_argument("--task", metavar="ITEMS", help="a file of multiple-choice items, for the metric task")
    parser.add_argument(
        "--format",
        action="append",
        default=None,
        help="score every candidate with weights stored so: fp32, fp16, bf16, int8, int4, int4-g128; repeatable "
        "(default: fp32)",
    )
    race = parser.add_argument_group("race", "Spend tokens on what the plan within these budgets hangs on only.")
    race.add_argument("--profile", action="append", default=[], metavar="[NAME=]PROFILE", help="as for search")
    race.add_argument(
        "--backend", default="onnxruntime", choices=ALL_BACKENDS, help="as for search (default: onnxruntime)"
    )
    race.add_argument("--budget", action="append", default=[], help="as for search; repeatable")
    add_search_loads(race)
    add_rules(parser)
    add_ray(parser, "score candidates")
    add_out(parser, "scores.parquet", "the table")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.compile.tensorrt_stored import check_choices
    from blockwright.library import read_library
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.race import race_for
    from blockwright.pipeline.recipe import check_distinct, check_formats
    from blockwright.pipeline.score import ScoreOrder, score_library
    from blockwright.pipeline.search import SearchOrder, read_devices
    from blockwright.pipeline.tables import print_scores
    from blockwright.servable import SCORABLE
    from blockwright.spec import parse_format

    tokens = read_tokens(arguments)
    metrics, formats = tuple(arguments.metric or ["kl"]), tuple(arguments.format or ["fp32"])
    check_distinct("--metric", metrics)
    check_formats("--format", formats, SCORABLE)
    order = ScoreOrder(
        text=arguments.text,
        window_tokens=arguments.window,
        tokens=tokens,
        seed=arguments.seed,
        metrics=metrics,
        task=arguments.task,
        formats=formats,
    )
    decide = None
    if arguments.budget or arguments.profile:
        for flag, given in (("--budget", arguments.budget), ("--profile", arguments.profile)):
            check_distinct(flag, given)
        if arguments.backend == "tensorrt":
            check_choices(
                list(map(parse_format, formats)), "Race twice, once with each, or score both without budgets."
            )
        searched = SearchOrder(
            loads=read_search_loads(arguments.load),
            budgets=tuple(arguments.budget),
            formats=formats,
            backend=arguments.backend,
            time_limit_s=60.0,
            frontier_points=0,
            metric=metrics[0].rpartition(":")[2],
            rules=read_rules(arguments),
        )
        race, decide = race_for(searched, read_devices(arguments.profile))
        order = replace(order, race=race)
    parent = open_parent(arguments.parent or read_library(arguments.library).parent_folder)
    with scoring_by(arguments.ray, parent, arguments.library, order) as run_batch:
        table = score_library(parent, arguments.library, order, arguments.out, decide, run_batch)
    print_scores(table)
