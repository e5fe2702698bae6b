"""Show what a profile knows of its device.

Prints who the device is, its ceilings with their intervals and sources, how much was measured and when, where the rows
come from, and how well the profile was found to foretell; draws the roofline with everything measured below.

  blockwright profile show h100_sxm
  blockwright profile show profile --plot roofline.svg
"""

import argparse
import json
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("name", metavar="NAME|FOLDER", help="a profile's folder, or the name of one that ships")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the roofline, as .svg, .png or .html")
    parser.add_argument("--json", action="store_true", help="print it as JSON instead of tables")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.hw_profiles.folder import read_profile
    from blockwright.pipeline.cost_tables import print_known
    from blockwright.pipeline.profile_show import profile_to_data, roofline_of
    from blockwright.report.roofline import check_plot, write_roofline

    if arguments.plot is not None:
        check_plot(arguments.plot)
    profile = read_profile(arguments.name)
    if arguments.json:
        print(json.dumps(profile_to_data(profile), indent=1))
    else:
        print_known(profile)
    if arguments.plot is not None:
        write_roofline(roofline_of(profile), arguments.plot)
