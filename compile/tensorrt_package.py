"""The one place that imports TensorRT, or TensorRT-RTX: their Python interface is the same, and one of them will do.

They differ in where they build. TensorRT-RTX builds for GPUs that are not there, each named by its compute capability,
and finishes the kernels on the GPU when an engine is opened. TensorRT needs the GPU that it builds for.
"""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from blockwright.errors import InputError

PackageName = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    title: str
    oldest: tuple[int, ...]
    why: str
    extra: str


_KINDS: dict[PackageName, _Kind] = {
    "tensorrt": _Kind(
        title="TensorRT",
        oldest=(10, 15),
        # NVIDIA's release notes of 10.14 and 10.15.1.
        why="Attention as a layer comes with 10.14; the cache that is updated in place and RotaryEmbedding with 10.15",
        extra="tensorrt",
    ),
    "tensorrt_rtx": _Kind(
        title="TensorRT-RTX", oldest=(1, 7), why="the oldest that this was tried with", extra="tensorrt-rtx"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An installed TensorRT."""

    name: PackageName
    version: str
    trt: Any

    @property
    def title(self) -> str:
        """Its name and version as people write them."""
        return f"{_KINDS[self.name].title} {self.version}"

    def new_log(self) -> Any:
        """A logger that keeps what TensorRT says, in `errors` and `warnings`, instead of printing it."""
        trt = self.trt

        class Log(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []
                self.warnings: list[str] = []

            def log(self, severity: Any, msg: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    self.errors.append(msg)
                elif severity == trt.ILogger.WARNING:
                    self.warnings.append(msg)

        return Log()


def in_words(message: str) -> str:
    """A message on one line, without what the absence of a GPU adds."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and "catchCudaError" not in line]
    return " ".join(lines)[:400] or message[:400]


def find_package(names: Sequence[PackageName]) -> Package:
    """The first of these that is installed and new enough.

    Raises:
        InputError: there is none, or it is too old or broken.
    """
    complaints: list[str] = []
    for each in names:
        found = _load(each)
        if isinstance(found, Package):
            return found
        complaints.append(found)
    extras = " or ".join(f"pip install 'blockwright[{_KINDS[each].extra}]'" for each in names)
    raise InputError(
        "tensorrt",
        got="; ".join(complaints),
        expected=" or ".join(f"{_KINDS[each].title} {_dotted(_KINDS[each].oldest)} or later" for each in names),
        remedy=f"Install it: {extras}. On a Jetson it comes with JetPack.",
    )


def _load(name: PackageName) -> Package | str:
    """The package, or why it is of no use."""
    kind = _KINDS[name]
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
        return f"no {kind.title}" if is_absent else f"a {kind.title} that does not load ({error})"
    numbers = tuple(int(part) for part in re.findall(r"\d+", trt.__version__)[:2])
    if numbers < kind.oldest:
        return f"{kind.title} {trt.__version__}, too old ({kind.why})"
    return Package(name=name, version=trt.__version__, trt=trt)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
