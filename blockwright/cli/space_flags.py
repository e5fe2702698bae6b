"""The flag for what candidates there are. Loads nothing heavy."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockwright.search.space import SpaceSettings
    from blockwright.spec import Model


def add_space(parser: argparse.ArgumentParser) -> None:
    """The flag for what candidates there are; `read_space_of` reads it."""
    parser.add_argument(
        "--space",
        type=Path,
        metavar="FILE",
        help="what to offer in each layer, in YAML (default: half and a quarter of the KV heads, three widths of the "
        "ffn, linear and nothing); `blockwright space` shows what a file comes to",
    )


def read_space_of(arguments: argparse.Namespace, parent: "Model") -> "SpaceSettings":
    """Reads ``--space`` for a parent; without the flag, the default.

    Raises:
        InputError: the file is missing, or holds what no layer of the parent could have.
    """
    from blockwright.search.space import SpaceSettings
    from blockwright.search.space_file import read_space

    return SpaceSettings() if arguments.space is None else read_space(arguments.space, parent)
