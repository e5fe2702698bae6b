"""Measure this machine, or what it takes for each block of a parent.

Writes a hardware profile, a folder. Without a parent: what the machine is, its ceilings, and times of operators of
sizes that models are made of, in at most five minutes. With one: times of every mixer and ffn that the search may
choose (--space), at every load, whole models to fit and check the sums, and memory. What matters most for whole models
is measured again until they are known to --precision. Each row carries its spread and origin.

With --device cuda the same of the first NVIDIA GPU, by torch in bf16 and at one load (default: 8x512+512): ceilings,
operators, blocks, whole models, memory and power; without a parent, blocks of a Llama of 8 billion parameters. With
--backend tensorrt beside it, blocks and whole models are plans of the installed TensorRT, in fp16 or each --format.

  blockwright profile
  blockwright profile --for path/to/parent --out profile
  blockwright profile --for path/to/parent --space space.yaml --out profile
  blockwright profile --device cuda --for path/to/parent --load chat=8x512+512
  blockwright profile --device cuda --backend tensorrt --format fp16 --format int4 --for path/to/parent
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from blockwright.cli import profile_import, profile_pack, profile_show, profile_validate
from blockwright.cli.flags import Command, add_command, add_loads, read_loads
from blockwright.cli.space_flags import add_space, read_space_of
from blockwright.errors import InputError

_ACTIONS: tuple[Command, ...] = (profile_pack, profile_import, profile_show, profile_validate)
_OF_A_PARENT = ("space", "load", "format", "backend", "precision", "time_limit")
"""Flags that mean nothing without one; None where they were not given."""
_OF_A_PROCESSOR = ("space", "threads", "seconds", "precision", "time_limit")
"""Flags that mean nothing on a GPU."""
_THREADS, _SECONDS, _PRECISION_PERCENT, _TIME_LIMIT_S = 1, 0.25, 1.0, 600.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    actions = parser.add_subparsers(metavar="ACTION", help="without one, this machine is measured")
    for module in _ACTIONS:
        add_command(actions, module, module.__name__.rpartition("_")[2])
    parser.add_argument("--for", dest="parent", help="the parent whose blocks are measured (default: none)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="the processor, or the first NVIDIA GPU (default: cpu)"
    )
    add_space(parser)
    add_loads(parser)
    parser.add_argument(
        "--format",
        action="append",
        help="weight format; repeatable (default: fp32; on a GPU torch's bf16, TensorRT's fp16)",
    )
    parser.add_argument(
        "--backend",
        action="append",
        choices=("onnxruntime", "torch", "tensorrt"),
        help="onnxruntime or torch, repeatable (default: onnxruntime); on a GPU torch or tensorrt (default: torch)",
    )
    parser.add_argument("--threads", type=int, help=f"threads of the runtime (default: {_THREADS})")
    parser.add_argument("--seconds", type=float, help=f"to measure each thing for (default: {_SECONDS:g})")
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
    if arguments.parent is None:
        wanted = "a parent, where one of its flags is given"
        _refuse(arguments, _OF_A_PARENT, "without --for", wanted, "Name the parent with --for, or leave the flag out.")
    if arguments.device == "cuda":
        wanted = "what is measured of a GPU: the same of every parent, at one load"
        _refuse(arguments, _OF_A_PROCESSOR, "with --device cuda", wanted, "Leave the flag out.")
        _profile_gpu(arguments)
    else:
        _profile_processor(arguments)


def _profile_gpu(arguments: argparse.Namespace) -> None:
    from blockwright.compile.tensorrt_stored import BF16, FORMATS
    from blockwright.llama import LLAMA_8B
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.gpu_profile import GpuOrder, default_folder, profile_gpu
    from blockwright.pipeline.gpu_runtimes import GpuBackend
    from blockwright.pipeline.recipe import check_formats
    from blockwright.pipeline.tables import print_profile
    from blockwright.profiler.gpu_plan import FULL, at_load
    from blockwright.spec import parse_format

    backends: list[GpuBackend] = arguments.backend or ["torch"]
    if len(backends) > 1 or backends[0] not in get_args(GpuBackend):
        got, remedy = (
            f"{' and '.join(backends)} with --device cuda",
            "Measure one at a time, each into a folder of its own.",
        )
        raise InputError("--backend", got=got, expected="torch or tensorrt", remedy=remedy)
    if arguments.format is not None:
        check_formats("--format", arguments.format, (BF16.name,) if backends == ["torch"] else FORMATS)
    formats = tuple(parse_format(text) for text in arguments.format or [])
    loads = list(read_loads(arguments.load).values()) if arguments.load else [FULL.load]
    if len(loads) > 1:
        got, remedy = f"{len(loads)} of them", "Measure one at a time, each into a folder of its own."
        raise InputError("--load", got=got, expected="one, on a GPU", remedy=remedy)
    plan = at_load(FULL, loads[0])
    folder = arguments.out or (default_folder() if arguments.parent is None else Path("profile"))
    parent = LLAMA_8B if arguments.parent is None else open_parent(arguments.parent).spec
    order = GpuOrder(parent=parent, device="cuda", plan=plan, backend=backends[0], formats=formats)
    print_profile(profile_gpu(order, folder))


def _profile_processor(arguments: argparse.Namespace) -> None:
    from blockwright.hw_profiles.profile import Backend
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.device_profile import DeviceOrder, default_folder, profile_device
    from blockwright.pipeline.profile import ProfileOrder, profile_machine
    from blockwright.pipeline.recipe import check_above_zero, check_at_least, check_distinct, check_formats
    from blockwright.pipeline.software import say_what_is_missing
    from blockwright.pipeline.tables import print_profile

    loads = read_loads(arguments.load)
    backends: tuple[Backend, ...] = tuple(arguments.backend or ["onnxruntime"])
    check_distinct("--backend", backends)
    if "tensorrt" in backends:
        raise InputError(
            "--backend",
            got="tensorrt without --device cuda",
            expected="onnxruntime or torch, on a processor",
            remedy="Add --device cuda where there is an NVIDIA GPU.",
        )
    formats = tuple(arguments.format or ["fp32"])
    check_formats("--format", formats)
    threads = _THREADS if arguments.threads is None else arguments.threads
    seconds = _SECONDS if arguments.seconds is None else arguments.seconds
    check_at_least("--threads", threads, 1)
    check_above_zero("--seconds", seconds)
    precision_percent = _PRECISION_PERCENT if arguments.precision is None else arguments.precision
    time_limit_s = _TIME_LIMIT_S if arguments.time_limit is None else arguments.time_limit
    check_above_zero("--precision", precision_percent)
    check_above_zero("--time-limit", time_limit_s)
    if "onnxruntime" in backends:
        say_what_is_missing()
    if arguments.parent is None:
        device_order = DeviceOrder(threads=threads, seconds_per_measurement=seconds)
        print_profile(profile_device(device_order, arguments.out or default_folder()))
        return
    parent = open_parent(arguments.parent).spec
    order = ProfileOrder(
        parent=parent,
        space=read_space_of(arguments, parent),
        loads=loads,
        formats=formats,
        threads=threads,
        backends=backends,
        seconds_per_measurement=seconds,
        precision=precision_percent / 100,
        time_limit_s=time_limit_s,
    )
    print_profile(profile_machine(order, arguments.out or Path("profile")))


def _refuse(arguments: argparse.Namespace, flags: Sequence[str], where: str, expected: str, remedy: str) -> None:
    """Refuses flags that were given, for they mean nothing there."""
    for name in flags:
        if (value := getattr(arguments, name)) is not None:
            words = " ".join(map(str, value)) if isinstance(value, list) else value
            raise InputError(f"--{name.replace('_', '-')}", got=f"{words} {where}", expected=expected, remedy=remedy)
