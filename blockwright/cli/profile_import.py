"""Take in what was measured elsewhere: the results of a kit.

Writes a profile, a folder like any other: what the device measured, what it is, and under which software.

  blockwright profile import results/ --out my-device
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_out


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("results", type=Path, help="the folder that a kit's run.py wrote")
    add_out(parser, "profile", "the profile's folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.kit import take_in
    from blockwright.pipeline.tables import print_profile

    print_profile(take_in(arguments.results, arguments.out))
