"""Take in what was measured elsewhere: the results of a kit, or of another program's benchmark.

A kit's results become a profile of their own. The others are times of a whole model in a runtime that is not ours: they
are added to a copy of its device's profile, and that runtime's costs of any child are then foretold from them.

  blockwright profile import results/ --out my-device
  blockwright profile import llama-bench bench.json --for path/to/parent --into rtx_4090 --out rtx-4090-llama
  blockwright profile import vllm one.json all.json --for path/to/parent --into h100_sxm --format bf16 \\
      --load one=8x512+1 --load all=8x512+128
  blockwright profile import trtexec times.json --for path/to/parent --into jetson_agx_orin --format int4 \\
      --load step=1x512+1 --context 512 --version 10.3.0

llama-bench -o json or jsonl, vllm bench latency --output-json or serve --save-result, trtexec --exportTimes. Then:

  blockwright predict child/ --profile rtx-4090-llama --backend llama.cpp --format int4
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from blockwright.cli.flags import read_loads
from blockwright.errors import InputError

if TYPE_CHECKING:
    from blockwright.profiler.imports import Told

_SOURCES = ("kit", "llama-bench", "vllm", "trtexec")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument(
        "results",
        nargs="+",
        metavar="[SOURCE] RESULTS",
        help="the folder that a kit's run.py wrote; or " + ", ".join(_SOURCES[1:]) + " and files that it wrote",
    )
    parser.add_argument("--for", dest="parent", help="the parent whose times these are")
    parser.add_argument("--into", metavar="PROFILE", help="its device: a profile's folder, or one that ships")
    parser.add_argument(
        "--load",
        action="append",
        metavar="NAME=BATCHxPROMPT+NEW",
        help="what was run, where files do not say it: one for all of them, or one for each",
    )
    parser.add_argument(
        "--context", type=int, metavar="TOKENS", help="in the caches, where trtexec timed one new token"
    )
    parser.add_argument("--format", help="of the weights, where files do not say it or have one of their own")
    parser.add_argument("--version", help="of the runtime, where files do not say it: those of trtexec, mostly vllm's")
    parser.add_argument(
        "-o", "--out", type=Path, help="the profile's folder to write (default: profile-NAME-OF-THE-PROFILE)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    source, *names = arguments.results
    if source not in _SOURCES or not names:
        source, names = "kit", arguments.results
    files = [Path(name) for name in names]
    if source == "kit":
        _take_in(arguments, files)
        return
    from blockwright.hw_profiles.folder import read_profile
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.imports import ImportOrder, import_results

    for flag in ("parent", "into"):
        if getattr(arguments, flag) is None:
            raise _missing("--for" if flag == "parent" else "--into", source)
    order = ImportOrder(
        source=source,
        parent=open_parent(arguments.parent).spec,
        into=read_profile(arguments.into),
        files=tuple(zip(files, _told(arguments, len(files)), strict=True)),
    )
    import_results(order, arguments.out)


def _take_in(arguments: argparse.Namespace, files: list[Path]) -> None:
    from blockwright.pipeline.kit import take_in
    from blockwright.pipeline.tables import print_profile

    given = [
        f"--{flag}" for flag in ("into", "load", "context", "format", "version") if getattr(arguments, flag) is not None
    ]
    if len(files) != 1 or given or arguments.parent is not None:
        raise InputError(
            "profile import",
            got=" ".join([*map(str, files), *given]),
            expected="one folder of a kit's results, or a source first: " + ", ".join(_SOURCES[1:]),
            remedy="Name the source: blockwright profile import llama-bench bench.json --for PARENT --into PROFILE.",
        )
    print_profile(take_in(files[0], arguments.out))


def _told(arguments: argparse.Namespace, num_files: int) -> "list[Told]":
    """What the flags say of each file."""
    from blockwright.pipeline.recipe import check_at_least
    from blockwright.profiler.imports import Told
    from blockwright.spec import parse_format

    loads = list(read_loads(arguments.load).values()) if arguments.load else [None]
    if len(loads) not in (1, num_files):
        raise InputError(
            "--load",
            got=f"{len(loads)} for {num_files} files",
            expected="one for all of them, or one for each in their order",
            remedy="Add or leave out some.",
        )
    if arguments.context is not None:
        check_at_least("--context", arguments.context, 1)
    weights = None if arguments.format is None else parse_format(arguments.format)
    of_each = loads * num_files if len(loads) == 1 else loads
    return [Told(load=load, context=arguments.context, weights=weights, version=arguments.version) for load in of_each]


def _missing(flag: str, source: str) -> InputError:
    what = "the parent whose times these are" if flag == "--for" else "the profile of the device that they are of"
    return InputError(
        flag, got="none", expected=what, remedy=f"blockwright profile import {source} FILE --for PARENT --into PROFILE"
    )
