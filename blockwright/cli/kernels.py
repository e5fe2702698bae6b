"""Compile the GPU kernels of our own, as files for C++ programs.

Writes machine code and PTX for each GPU, which need not be here, and kernels.json: arguments and their order, grid,
block, shared memory, registers and spills of each. Kernels: int4 products for single rows and for many (groups of 32,
64 and 128), attention over a compacted cache of initial tokens, separators and neighbours, and over a prompt. Needs the
extra [triton]. None of it was run on a GPU yet.

  blockwright kernels --out kernels --for sm87,sm90
  blockwright kernels --out kernels --for sm90 --heads 128x4,64x1 --dtype bf16 --json
"""

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

from blockwright.cli.flags import add_out
from blockwright.errors import InputError

if TYPE_CHECKING:
    from blockwright.compile.kernels import Number


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument(
        "--for",
        dest="capabilities",
        metavar="SM",
        default="sm80,sm86,sm87,sm89,sm90,sm100,sm110,sm120",
        help="GPUs (default: %(default)s)",
    )
    parser.add_argument(
        "--heads",
        metavar="DIMxSHARED",
        default="128x4",
        help="kinds of head: channels, and query heads per KV head, such as 128x4,64x1 (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="fp16", help="of activations: fp16, bf16 or fp16,bf16 (default: fp16)")
    parser.add_argument("--json", action="store_true", help="print the manifest instead of a table")
    add_out(parser, "kernels", "the folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.compile.kernel_files import WrittenKernel, catalogue, write_kernels
    from blockwright.strict import to_data

    wanted = catalogue(_numbers(arguments.dtype), _heads(arguments.heads))
    capabilities = tuple(dict.fromkeys(arguments.capabilities.split(",")))
    most = len(wanted) * len(capabilities)
    done: list[str] = []

    def tell(kernel: WrittenKernel) -> None:
        done.append(kernel.name)
        print(f"{len(done)} of {most}: {kernel.capability} {kernel.name}", file=sys.stderr)

    manifest = write_kernels(wanted, capabilities, arguments.out, tell)
    if arguments.json:
        print(json.dumps(to_data(manifest), indent=1))
        return
    print("GPU    registers  spilled  shared     kernel")
    for each in manifest.kernels:
        sizes = f"{each.num_registers:9}  {each.spill_store_bytes + each.spill_load_bytes:5} B  {each.shared_bytes:7} B"
        print(f"{each.capability:5}  {sizes}  {each.name}")
    print(f"{arguments.out}: {most} kernels by Triton {manifest.triton}; kernels.json says how to launch them")


def _numbers(text: str) -> tuple["Number", ...]:
    known: dict[str, Number] = {"fp16": "fp16", "bf16": "bf16"}
    for word in text.split(","):
        if word not in known:
            raise InputError("--dtype", got=repr(text), expected="fp16, bf16 or fp16,bf16", remedy="Write it so.")
    return tuple(dict.fromkeys(known[word] for word in text.split(",")))


def _heads(text: str) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", word)
        if not match:
            raise InputError(
                "--heads",
                got=repr(word),
                expected="channels of a head x query heads per KV head, such as 128x4",
                remedy="Write it so; several with commas between.",
            )
        found.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(found))
