"""Score every candidate of a library: what the parent loses when that one takes its place.

Writes a Parquet table: for each candidate the KL divergence from the parent, in nats per token, with its interval.

  blockwright score library --text texts/ --tokens 16k --out scores.parquet
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_out, add_text, read_tokens


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("library", type=Path, help="the folder that `blockwright library` wrote")
    parser.add_argument("--parent", help="where the parent is (default: where it was when the library was built)")
    add_text(parser)
    parser.add_argument("--tokens", default="16k", help="to score on (default: 16k)")
    add_out(parser, "scores.parquet", "the table")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.library import read_library
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.score import ScoreOrder, score_library
    from blockwright.pipeline.tables import print_scores

    tokens = read_tokens(arguments)
    order = ScoreOrder(text=arguments.text, window_tokens=arguments.window, tokens=tokens, seed=arguments.seed)
    parent = open_parent(arguments.parent or read_library(arguments.library).parent_folder)
    print_scores(score_library(parent, arguments.library, order, arguments.out))
