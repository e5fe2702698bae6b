"""Build and train the block library of a parent.

Writes a folder with one safetensors file per trained candidate and index.json, which says how close each comes to the
parent's own layer. Every candidate of a layer learns from the same single pass of the parent.

  blockwright library path/to/parent --text texts/ --tokens 1M --out library
"""

import argparse

from blockwright.cli.flags import add_out, add_text, read_tokens


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("parent", help="a checkpoint's folder, or a repository of the Hugging Face hub")
    add_text(parser)
    parser.add_argument("--tokens", default="64k", help="to train each candidate on (default: 64k)")
    parser.add_argument("--batch", type=int, default=4, metavar="WINDOWS", help="windows of a step (default: 4)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of AdamW (default: 0.002)")
    add_out(parser, "library", "the folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.library import LibraryOrder, build_library
    from blockwright.pipeline.recipe import check_above_zero, check_at_least
    from blockwright.pipeline.tables import print_library
    from blockwright.search.space import SpaceSettings

    check_at_least("--batch", arguments.batch, 1)
    check_above_zero("--learning-rate", arguments.learning_rate)
    order = LibraryOrder(
        space=SpaceSettings(),
        text=arguments.text,
        window_tokens=arguments.window,
        tokens=read_tokens(arguments),
        batch_windows=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    print_library(build_library(open_parent(arguments.parent), order, arguments.out))
