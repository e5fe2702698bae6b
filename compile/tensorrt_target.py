"""Which GPUs an engine is built for, and by which TensorRT."""

import ctypes
import re
import sys
from collections.abc import Sequence

import torch

from blockwright.compile.tensorrt_package import Form, Package, find_package
from blockwright.errors import InputError

DEFAULT_CAPABILITIES = ("sm80", "sm86", "sm89", "sm120")
"""What TensorRT-RTX builds for unless told otherwise: A100, and the consumer's of three generations."""

_OF_RTX_1_7_1 = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""What TensorRT-RTX 1.7.1 builds for, by its own ``ComputeCapability``."""

_FIRST_WITH_INT4_AND_BF16 = 80
"""TensorRT-RTX 1.7.1 says so itself: «Cannot compile for target(s) sm75, because the model contains HW-specific
datatypes: int4», and so for bf16."""

_ELSEWHERE = {
    "sm87": "A Jetson Orin is served by TensorRT: build on it, with TensorRT 10.15 or later (JetPack 7.2), or from a "
    "kit that --kit --form decomposed packs without --for, which is meant for TensorRT 10.3 too (JetPack 6).",
    "sm110": "A Jetson Thor is served by TensorRT: compile on it (JetPack 7).",
}


def gpu_capability() -> str | None:
    """Of the GPU at hand, as ``sm86``; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def gpu_identity() -> tuple[str, ...] | None:
    """What kernels compiled on the GPU at hand depend on: its name, its capability, and the CUDA of its driver.

    None where there is no GPU, or a driver that does not tell.
    """
    capability = gpu_capability()
    if capability is None:
        return None
    number = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    if driver.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return torch.cuda.get_device_name(), capability, f"CUDA {number.value}"


def choose_package(gpu: str | None, form: Form = "fused") -> Package:
    """The installed TensorRT that can build a form here: without a GPU only TensorRT-RTX can.

    Raises:
        InputError: there is none.
    """
    return find_package(("tensorrt", "tensorrt_rtx") if gpu else ("tensorrt_rtx", "tensorrt"), form)


def choose_capabilities(
    package: Package, asked: Sequence[str] | None, gpu: str | None, narrow: Sequence[str]
) -> tuple[str, ...]:
    """What to build for.

    Args:
        package: who builds.
        asked: as ``sm86``; None for what suits.
        gpu: at hand.
        narrow: which of int4 and bf16 the engine holds.

    Raises:
        InputError: the package does not build for one of them, or not here.
    """
    for name in asked or ():
        _check_capability(name, ())
    if package.name == "tensorrt":
        if gpu is None or (asked and tuple(asked) != (gpu,)):
            wanted = f"{', '.join(asked)} with " if asked else ""
            raise _refused(
                wanted + ("no GPU" if gpu is None else f"an {gpu} here"),
                f"the GPU at hand, for {package.title} builds for no other",
                "Compile on that GPU, or with TensorRT-RTX, which needs none: pip install 'blockwright[tensorrt-rtx]'.",
            )
        return (gpu,)
    known = _known_to(package)
    chosen = tuple(dict.fromkeys(asked)) if asked else tuple(name for name in DEFAULT_CAPABILITIES if name in known)
    for name in chosen:
        _check_known(name, known, package.title)
        _check_capability(name, narrow)
    return chosen


def check_kit_capabilities(asked: Sequence[str], narrow: Sequence[str]) -> None:
    """Refuses what a kit's builder could not build for: what TensorRT-RTX does not know, the installed one or 1.7.1.

    Args:
        asked: as ``sm86``. They are TensorRT-RTX's; TensorRT builds for the GPU of the device.
        narrow: which of int4 and bf16 the engine holds.

    Raises:
        InputError: one of them is none, is unknown, or has not the arithmetic.
    """
    if not asked:
        return  # spares loading a package
    known, title = _rtx()
    for name in asked:
        _check_capability(name, ())
        _check_known(name, known, title)
        _check_capability(name, narrow)


def is_of_rtx(name: str) -> bool:
    """Whether TensorRT-RTX builds for a GPU; engines for others are built on them, by TensorRT."""
    return name in _rtx()[0]


def _rtx() -> tuple[tuple[str, ...], str]:
    """What TensorRT-RTX builds for, and which it is: the installed one, or the one that this was tried with."""
    try:
        package = find_package(("tensorrt_rtx",))
    except InputError:
        return _OF_RTX_1_7_1, "TensorRT-RTX 1.7.1"
    return _known_to(package), package.title


def _check_capability(name: str, narrow: Sequence[str]) -> None:
    """Refuses what is no GPU, and GPUs without the arithmetic that an engine needs.

    Args:
        name: as ``sm86``.
        narrow: which of int4 and bf16 the engine holds.

    Raises:
        InputError: it is one of these.
    """
    if not re.fullmatch(r"sm\d{2,3}", name):
        raise _refused(repr(name), "compute capabilities as sm86,sm120", "Write them so.")
    if narrow and int(name[2:]) < _FIRST_WITH_INT4_AND_BF16:
        raise _refused(f"{name} with {' and '.join(narrow)}", "sm80 or later for these", "Compile with fp16.")


def _known_to(package: Package) -> tuple[str, ...]:
    return tuple(name.lower() for name in package.trt.ComputeCapability.__members__ if name.startswith("SM"))


def _check_known(name: str, known: Sequence[str], title: str) -> None:
    if name not in known:
        remedy = _ELSEWHERE.get(name, "Compile with TensorRT on that GPU, or leave it out.")
        raise _refused(name, f"some of {', '.join(known)}, which {title} builds for", remedy)


def _refused(got: str, expected: str, remedy: str) -> InputError:
    return InputError("--for", got=got, expected=expected, remedy=remedy)
