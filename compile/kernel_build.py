"""Compiles our Triton kernels for GPUs that are not there, to PTX and to machine code, and says what they take.

PTX is kept to version 8.7, which CUDA 12.8 and every driver since can read, but for sm110, which PTX knows from 9.0
on. Pointers are declared to be multiples of 16 bytes, as torch's and TensorRT's are, so that loads are wide.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockwright.compile.kernels import Kernel
from blockwright.compile.ptx import entry_name, parameter_types, target, version, without_scratch
from blockwright.compile.triton_launch import FUNCTIONS
from blockwright.compile.triton_package import check_version, triton
from blockwright.errors import InputError

POINTER_ALIGNMENT_BYTES = 16
PTX_VERSION = 87

_PTX_VERSIONS = {"sm110": 90}
"""Where PTX_VERSION does not know the GPU; LLVM says so and ends the process."""

_OLDEST_TRITON = {"sm110": (3, 9)}
"""Whose ptxas knows the GPU: that of 3.6 does not, those between were not tried."""

MOST_SHARED_BYTES = {
    "sm80": 163 * 1024,
    "sm86": 99 * 1024,
    "sm87": 163 * 1024,
    "sm89": 99 * 1024,
    "sm90": 227 * 1024,
    "sm100": 227 * 1024,
    "sm110": 227 * 1024,
    "sm120": 99 * 1024,
}
"""What a block may have: CUDA C++ Programming Guide 13.0, table of technical specifications per compute capability."""

_FLAGS = ("--regAllocOptLevel=2",)
"""Of ptxas: as Triton itself has it, «to work around ptxas 13.x bug»."""

CAPABILITIES = tuple(MOST_SHARED_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A kernel for one GPU."""

    kernel: Kernel
    capability: str
    """As ``sm90``."""
    target: str
    """As PTX has it: ``sm_90a`` runs on this capability only."""
    ptx: str
    cubin: bytes
    entry: str
    num_registers: int
    """Of a thread."""
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    shared_bytes: int
    """To be asked for at the launch."""


def check_capability(name: str) -> None:
    """Refuses a GPU that kernels are not compiled for.

    Raises:
        InputError: it is one, or this Triton is too old for it.
    """
    if name not in MOST_SHARED_BYTES:
        raise InputError(
            "--for",
            got=repr(name),
            expected="some of " + ", ".join(CAPABILITIES),
            remedy="Write them so, with commas between; PTX for sm80 runs on every later GPU too.",
        )
    if name in _OLDEST_TRITON:
        check_version(triton.__version__, _OLDEST_TRITON[name], f" for {name}")


def compile_kernel(kernel: Kernel, capability: str) -> Compiled:
    """Compiles for one GPU, which need not be there.

    Raises:
        InputError: kernels are not compiled for it, or this one needs more shared memory than it has.
    """
    check_capability(capability)
    number = int(capability[2:])
    with _apart() as folder:
        made = triton.compile(
            _source(kernel),
            target=triton.backends.compiler.GPUTarget("cuda", number, 32),
            options={
                "num_warps": kernel.num_warps,
                "num_stages": kernel.num_stages,
                "ptx_version": _PTX_VERSIONS.get(capability, PTX_VERSION),
                "enable_fp_fusion": True,
            },
        )
        assert not made.metadata.global_scratch_size, "no kernel of ours needs scratch memory"
        ptx = without_scratch(made.asm["ptx"], len(kernel.arguments))
        cubin, report = _assemble(ptx, number, folder)
    _check(kernel, capability, ptx, made.metadata.shared)
    return Compiled(
        kernel=kernel,
        capability=capability,
        target=target(ptx),
        ptx=ptx,
        cubin=cubin,
        entry=entry_name(ptx),
        num_registers=_number(r"Used (\d+) registers", report),
        spill_store_bytes=_number(r"(\d+) bytes spill stores", report),
        spill_load_bytes=_number(r"(\d+) bytes spill loads", report),
        stack_bytes=_number(r"(\d+) bytes stack frame", report),
        shared_bytes=made.metadata.shared,
    )


def assembler_version(capability: str) -> str:
    """Of the ptxas that assembles for a GPU, as ``12.9.86``."""
    said = subprocess.run([_assembler(int(capability[2:])), "--version"], check=True, capture_output=True, text=True)
    match = re.search(r"\bV(\d+\.\d+\.\d+)", said.stdout)
    return match[1] if match else "unknown"


def _check(kernel: Kernel, capability: str, ptx: str, shared_bytes: int) -> None:
    expected = ["u64" if argument.type.startswith("*") else "u32" for argument in kernel.arguments]
    assert parameter_types(ptx) == expected, "arguments as declared"
    assert version(ptx) <= divmod(_PTX_VERSIONS.get(capability, PTX_VERSION), 10), "PTX that older drivers can read"
    if shared_bytes > MOST_SHARED_BYTES[capability]:
        raise InputError(
            kernel.name,
            got=f"{shared_bytes} bytes of shared memory",
            expected=f"at most {MOST_SHARED_BYTES[capability]} on {capability}",
            remedy="Leave this GPU out, or ask for smaller heads.",
        )


@contextmanager
def _apart() -> Iterator[Path]:
    """A folder for Triton's cache that goes again, and no paths of this machine in what is written."""
    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = folder
        knobs.compilation.disable_line_info = True
        yield Path(folder)


def _source(kernel: Kernel) -> Any:
    function = FUNCTIONS[kernel.function]
    constants = dict(kernel.constants)
    named = {f"{each.name}_ptr" if each.type.startswith("*") else each.name: each.type for each in kernel.arguments}
    assert [*named, *constants] == _in_order(function.arg_names, constants), "arguments as the kernel has them"
    aligned = {
        (index,): [["tt.divisibility", POINTER_ALIGNMENT_BYTES]]
        for index, argument in enumerate(kernel.arguments)
        if argument.type.startswith("*")
    }
    return triton.compiler.ASTSource(
        function, signature=named | dict.fromkeys(constants, "constexpr"), constexprs=constants, attrs=aligned
    )


def _in_order(names: list[str], constants: dict[str, Any]) -> list[str]:
    """A function's arguments, the constants in the order that we have them in."""
    return [*(name for name in names if name not in constants), *(name for name in constants if name in names)]


def _assembler(number: int) -> str:
    return triton.backends.nvidia.compiler.get_ptxas(number).path


def _assemble(ptx: str, number: int, folder: Path) -> tuple[bytes, str]:
    """Machine code, and what ptxas says of it."""
    source, made = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx)
    command = [_assembler(number), "-v", *_FLAGS, f"--gpu-name={target(ptx)}", str(source), "-o", str(made)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return made.read_bytes(), done.stderr + done.stdout


def _number(pattern: str, report: str) -> int:
    match = re.search(pattern, report)
    assert match, f"ptxas says {pattern}"
    return int(match[1])
