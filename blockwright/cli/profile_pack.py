"""Pack what is to be measured into a kit for a device without torch.

The kit is a zip: unpacked on the device, its run.py needs Python 3.10, numpy and onnxruntime, and nothing else.
Bring its folder results/ back for `profile import`.

  blockwright profile pack --for path/to/parent --load chat=1x128+128 --out kit.zip
"""

import argparse

from blockwright.cli.flags import add_loads, add_out, read_loads
from blockwright.cli.space_flags import add_space, read_space_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("--for", dest="parent", required=True, help="the parent whose blocks are measured")
    add_space(parser)
    add_loads(parser)
    parser.add_argument("--format", action="append", help="weight format; repeatable (default: fp32)")
    add_out(parser, "kit.zip", "the kit")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.checks import check_formats
    from blockwright.pipeline.kit import pack

    formats = tuple(arguments.format or ["fp32"])
    check_formats("--format", formats)
    loads = read_loads(arguments.load)
    parent = open_parent(arguments.parent).spec
    pack(parent, read_space_of(arguments, parent), tuple(loads.values()), formats, arguments.out)
