"""Write the report of a finished run again, from its files.

Example:
  blockwright report runs/demo
"""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("-o", "--out", type=Path, help="the page to write (default: report.html in the run's folder)")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.report import report_run

    page = arguments.out or arguments.run / "report.html"
    report_run(arguments.run, page)
    print(page)
