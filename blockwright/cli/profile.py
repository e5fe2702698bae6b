"""Measure this machine, or what it takes for each block of a parent.

Writes a hardware profile, a folder. Without a parent: what the machine is, its ceilings, and times of operators of
sizes that models are made of, in at most five minutes. With one: times of every mixer and ffn that the search may
choose, at every load, whole models to fit and check the sums, and memory. What matters most for whole models is
measured again until they are known to --precision. Each row carries its spread and origin.

  blockwright profile
  blockwright profile --for path/to/parent --out profile
"""

import argparse
from pathlib import Path

from blockwright.cli import profile_import, profile_pack, profile_show, profile_validate
from blockwright.cli.flags import Command, add_command, add_loads, read_loads
from blockwright.errors import InputError

_ACTIONS: tuple[Command, ...] = (profile_pack, profile_import, profile_show, profile_validate)
_OF_A_PARENT = ("load", "format", "backend", "precision", "time_limit")
"""Flags that mean nothing without one; None where they were not given."""
_PRECISION_PERCENT, _TIME_LIMIT_S = 1.0, 600.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    actions = parser.add_subparsers(metavar="ACTION", help="without one, this machine is measured")
    for module in _ACTIONS:
        add_command(actions, module, module.__name__.rpartition("_")[2])
    parser.add_argument("--for", dest="parent", help="the parent whose blocks are measured (default: none)")
    add_loads(parser)
    parser.add_argument("--format", action="append", help="weight format; repeatable (default: fp32)")
    parser.add_argument(
        "--backend", action="append", choices=("onnxruntime", "torch"), help="repeatable (default: onnxruntime)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--seconds", type=float, default=0.25, help="to measure each thing for (default: 0.25)")
    parser.add_argument(
        "--precision",
        type=float,
        metavar="PERCENT",
        help=f"how well to know a typical child's time (default: {_PRECISION_PERCENT:g})",
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help=f"to measure anything again (default: {_TIME_LIMIT_S:g})"
    )
    parser.add_argument(
        "-o", "--out", type=Path, help="folder to write (default: profile; without --for, hw_profiles/NAME-OF-DEVICE)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.hw_profiles.profile import Backend
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.device_profile import DeviceOrder, default_folder, profile_device
    from blockwright.pipeline.profile import ProfileOrder, profile_machine
    from blockwright.pipeline.recipe import check_above_zero, check_at_least, check_distinct, check_formats
    from blockwright.pipeline.tables import print_profile
    from blockwright.search.space import SpaceSettings

    if arguments.parent is None:
        _refuse_flags_of_a_parent(arguments)
    loads = read_loads(arguments.load)
    formats = tuple(arguments.format or ["fp32"])
    check_formats("--format", formats)
    backends: tuple[Backend, ...] = tuple(arguments.backend or ["onnxruntime"])
    check_distinct("--backend", backends)
    check_at_least("--threads", arguments.threads, 1)
    check_above_zero("--seconds", arguments.seconds)
    precision_percent = _PRECISION_PERCENT if arguments.precision is None else arguments.precision
    time_limit_s = _TIME_LIMIT_S if arguments.time_limit is None else arguments.time_limit
    check_above_zero("--precision", precision_percent)
    check_above_zero("--time-limit", time_limit_s)
    if arguments.parent is None:
        device_order = DeviceOrder(threads=arguments.threads, seconds_per_measurement=arguments.seconds)
        print_profile(profile_device(device_order, arguments.out or default_folder()))
        return
    order = ProfileOrder(
        parent=open_parent(arguments.parent).spec,
        space=SpaceSettings(),
        loads=loads,
        formats=formats,
        threads=arguments.threads,
        backends=backends,
        seconds_per_measurement=arguments.seconds,
        precision=precision_percent / 100,
        time_limit_s=time_limit_s,
    )
    print_profile(profile_machine(order, arguments.out or Path("profile")))


def _refuse_flags_of_a_parent(arguments: argparse.Namespace) -> None:
    for name in _OF_A_PARENT:
        if (value := getattr(arguments, name)) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}",
                got=f"{' '.join(map(str, value)) if isinstance(value, list) else value} without --for",
                expected="a parent, where one of its flags is given",
                remedy="Name the parent with --for, or leave the flag out to measure the machine by itself.",
            )
