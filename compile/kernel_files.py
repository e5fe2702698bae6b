"""Our kernels as files for those who launch them themselves: machine code, PTX, and a manifest that says how.

A program loads a cubin (cuModuleLoadData), takes the function `entry`, allows it `shared_bytes` where that is above
48 KiB (cuFuncSetAttribute), and launches it over `grid` with `block_threads` threads, `shared_bytes` and the
arguments in their order. One side of the grid is ceil(product of `sizes` / `step`), 1 where it is not told.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blockwright
from blockwright.compile import kernels
from blockwright.compile.kernel_build import (
    POINTER_ALIGNMENT_BYTES,
    Compiled,
    assembler_version,
    check_capability,
    compile_kernel,
)
from blockwright.compile.kernels import Argument, Axis, Heads, Kernel, Number
from blockwright.compile.ptx import version
from blockwright.compile.triton_package import triton
from blockwright.errors import InputError
from blockwright.files import new_folder, read_json, write_json
from blockwright.strict import from_data, to_data

MANIFEST_FILE = "kernels.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFile:
    """One file of a kernel, relative to the manifest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenKernel:
    """A kernel for one GPU, and what a launch needs."""

    name: str
    function: str
    capability: str
    target: str
    """Ends with an a where the code runs on this capability only."""
    entry: str
    arguments: tuple[Argument, ...]
    constants: dict[str, float]
    """Compiled in."""
    grid: tuple[Axis, ...]
    block_threads: int
    shared_bytes: int
    num_registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    ptx_version: str
    ptx: KernelFile
    cubin: KernelFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What kernels.json says."""

    schema_version: Literal[1]
    blockwright: str
    triton: str
    ptxas: dict[str, str]
    """By capability."""
    pointer_alignment_bytes: int
    """Every pointer must be a multiple of it."""
    kernels: tuple[WrittenKernel, ...]


def catalogue(numbers: Sequence[Number], heads: Sequence[tuple[int, int]]) -> tuple[Kernel, ...]:
    """All kernels that torch's operators launch for some types and kinds of head.

    Args:
        numbers: of activations.
        heads: channels of a head, and query heads per KV head.
    """
    found: list[Kernel] = []
    for number in numbers:
        found += [
            kernels.linear_for(number, group, num_rows, is_split)
            for group in kernels.GROUPS
            for num_rows in (1, *kernels.ROWS_AT_ONCE)
            for is_split in (False, True)
        ]
        found.append(kernels.sum_splits(number))
        for head_dim, heads_per_kv in heads:
            each = Heads(number=number, head_dim=head_dim, heads_per_kv=heads_per_kv)
            found += [kernels.sparse_decode(each, is_split) for is_split in (False, True)]
            found.append(kernels.sparse_prefill(each))
        found += [kernels.join_splits(number, head_dim) for head_dim in dict.fromkeys(dim for dim, _ in heads)]
    return tuple(found)


def write_kernels(
    wanted: Sequence[Kernel],
    capabilities: Sequence[str],
    folder: Path,
    on_written: Callable[[WrittenKernel], None] = lambda _: None,
) -> Manifest:
    """Compiles kernels for GPUs that need not be here, and writes them, all or none.

    Raises:
        InputError: one of the GPUs is unknown or has too little shared memory, or the folder is not ours to replace.
    """
    for capability in capabilities:
        check_capability(capability)
    _check_is_ours(folder)
    with new_folder(folder) as temporary:
        written: list[WrittenKernel] = []
        for capability in capabilities:
            for kernel in wanted:
                written.append(_write(compile_kernel(kernel, capability), temporary))
                on_written(written[-1])
        manifest = Manifest(
            schema_version=1,
            blockwright=blockwright.__version__,
            triton=triton.__version__,
            ptxas={capability: assembler_version(capability) for capability in capabilities},
            pointer_alignment_bytes=POINTER_ALIGNMENT_BYTES,
            kernels=tuple(written),
        )
        write_json(temporary / MANIFEST_FILE, to_data(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads what `write_kernels` wrote.

    Raises:
        InputError: there is none, or it is broken.
    """
    return from_data(Manifest, read_json(folder / MANIFEST_FILE), str(folder / MANIFEST_FILE))


def _write(compiled: Compiled, folder: Path) -> WrittenKernel:
    kernel, stem = compiled.kernel, f"{compiled.capability}/{compiled.kernel.name}"
    return WrittenKernel(
        name=kernel.name,
        function=kernel.function,
        capability=compiled.capability,
        target=compiled.target,
        entry=compiled.entry,
        arguments=kernel.arguments,
        constants={name: float(value) for name, value in kernel.constants},
        grid=kernel.grid,
        block_threads=32 * kernel.num_warps,
        shared_bytes=compiled.shared_bytes,
        num_registers=compiled.num_registers,
        spill_store_bytes=compiled.spill_store_bytes,
        spill_load_bytes=compiled.spill_load_bytes,
        stack_bytes=compiled.stack_bytes,
        ptx_version=".".join(map(str, version(compiled.ptx))),
        ptx=_file(folder, f"{stem}.ptx", compiled.ptx.encode()),
        cubin=_file(folder, f"{stem}.cubin", compiled.cubin),
    )


def _file(folder: Path, path: str, content: bytes) -> KernelFile:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(content)
    return KernelFile(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _check_is_ours(folder: Path) -> None:
    if not folder.exists() or (folder / MANIFEST_FILE).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise InputError(
            "--out",
            got=f"{folder}, which holds something else",
            expected="a new or empty folder, or one of kernels: what stands there is replaced",
            remedy="Name another place with --out, or remove this one yourself.",
        )
