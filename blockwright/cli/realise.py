"""Make a plan real: a checkpoint with the chosen blocks, before distillation.

The checkpoint loads in plain transformers with trust_remote_code=True, without Blockwright.

  blockwright realise plan.json --library library --out child
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_out


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("plan", type=Path, help="the file that `blockwright search` wrote")
    parser.add_argument("--library", type=Path, required=True, help="the folder that `blockwright library` wrote")
    parser.add_argument("--parent", help="where the parent is (default: where it was when the library was built)")
    add_out(parser, "realised", "the checkpoint's folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.library import read_library
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.realise import realise_plan

    parent = open_parent(arguments.parent or read_library(arguments.library).parent_folder)
    realise_plan(parent, arguments.plan, arguments.library, arguments.out)
    print(f"{arguments.out}: next, blockwright distill {arguments.out} --teacher {parent.folder} --text …")
