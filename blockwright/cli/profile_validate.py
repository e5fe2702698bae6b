"""Try a profile of this machine: foretell random children, measure them, and write how far off it was into the profile.

The children are mixes of the variants that the profile has times of, none of which it was fitted on. They are run as
real engines with random weights in a process of their own. A run that was stopped goes on where it was.

  blockwright profile validate profile --children 12 --load chat=1x128+128
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_loads, read_loads


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("profile", type=Path, metavar="PROFILE", help="the profile's folder")
    parser.add_argument("--children", type=int, default=12, help="children to draw, of each format (default: 12)")
    add_loads(parser)
    parser.add_argument("--format", action="append", help="weight format; repeatable (default: all in the profile)")
    parser.add_argument("--seconds", type=float, default=0.5, help="to measure each time for (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the children (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.accuracy_table import print_accuracy
    from blockwright.pipeline.checks import check_above_zero, check_at_least, check_formats, check_seed
    from blockwright.pipeline.validate import ValidateOrder, validate_profile
    from blockwright.spec import parse_format

    loads = read_loads(arguments.load)
    formats = tuple(arguments.format or [])
    if formats:
        check_formats("--format", formats)
    check_at_least("--children", arguments.children, 1)
    check_above_zero("--seconds", arguments.seconds)
    check_seed("--seed", arguments.seed)
    order = ValidateOrder(
        loads=loads,
        formats=tuple(str(parse_format(name)) for name in formats),
        num_children=arguments.children,
        seed=arguments.seed,
        seconds=arguments.seconds,
    )
    print_accuracy(validate_profile(arguments.profile, order))
