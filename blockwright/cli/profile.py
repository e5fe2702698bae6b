"""Measure what this machine takes for each block of a parent.

Writes a hardware profile, a folder: times of every mixer and ffn that the search may choose, at every load, whole
models to fit and check the sums, memory, and the machine's ceilings; each row with its spread and origin.

  blockwright profile --for path/to/parent --out profile
"""

import argparse

from blockwright.cli import profile_import, profile_pack
from blockwright.cli.flags import Command, add_command, add_loads, add_out, read_loads

_ACTIONS: tuple[Command, ...] = (profile_pack, profile_import)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    actions = parser.add_subparsers(metavar="ACTION", help="without one, this machine is measured")
    for module in _ACTIONS:
        add_command(actions, module, module.__name__.rpartition("_")[2])
    parser.add_argument("--for", dest="parent", help="the parent whose blocks are measured")
    add_loads(parser)
    parser.add_argument("--format", action="append", help="weight format; repeatable (default: fp32)")
    parser.add_argument(
        "--backend", action="append", choices=("onnxruntime", "torch"), help="repeatable (default: onnxruntime)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--seconds", type=float, default=0.25, help="to measure each thing for (default: 0.25)")
    add_out(parser, "profile", "the profile's folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.errors import InputError
    from blockwright.hw_profiles.profile import Backend
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.profile import ProfileOrder, profile_machine
    from blockwright.pipeline.recipe import check_above_zero, check_at_least, check_distinct, check_formats
    from blockwright.pipeline.tables import print_profile
    from blockwright.search.space import SpaceSettings

    if arguments.parent is None:
        raise InputError(
            "--for",
            got="no parent",
            expected="the parent whose blocks are measured",
            remedy="Name it: blockwright profile --for path/to/parent",
        )
    loads = read_loads(arguments.load)
    formats = tuple(arguments.format or ["fp32"])
    check_formats("--format", formats)
    backends: tuple[Backend, ...] = tuple(arguments.backend or ["onnxruntime"])
    check_distinct("--backend", backends)
    check_at_least("--threads", arguments.threads, 1)
    check_above_zero("--seconds", arguments.seconds)
    order = ProfileOrder(
        parent=open_parent(arguments.parent).spec,
        space=SpaceSettings(),
        loads=loads,
        formats=formats,
        threads=arguments.threads,
        backends=backends,
        seconds_per_measurement=arguments.seconds,
    )
    print_profile(profile_machine(order, arguments.out))
