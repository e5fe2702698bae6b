"""The one place that imports TensorRT, or TensorRT-RTX: their Python interface is the same, and one of them will do.

An engine has one of two forms. The fused one is made of layers for attention, its cache and rotary embedding, which
TensorRT has since 10.15; the decomposed one of products and a softmax, for what is older, as on Jetsons with JetPack 6.

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
Form = Literal["fused", "decomposed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needed:
    """The oldest version that builds a form."""

    oldest: tuple[int, ...]
    why: str


_TRIED = _Needed(oldest=(1, 7), why="the oldest that this was tried with")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    title: str
    needed: dict[Form, _Needed]
    extra: str


_KINDS: dict[PackageName, _Kind] = {
    "tensorrt": _Kind(
        title="TensorRT",
        needed={
            # NVIDIA's release notes of 10.14 and 10.15.1.
            "fused": _Needed(
                oldest=(10, 15),
                why="Attention as a layer comes with 10.14; "
                "the cache that is updated in place and RotaryEmbedding with 10.15",
            ),
            # onnx-tensorrt's changelog of 10.0.
            "decomposed": _Needed(
                oldest=(10, 3), why="int4 comes with 10.0; 10.3 is the oldest that this form is meant for, JetPack 6's"
            ),
        },
        extra="tensorrt",
    ),
    "tensorrt_rtx": _Kind(title="TensorRT-RTX", needed={"fused": _TRIED, "decomposed": _TRIED}, extra="tensorrt-rtx"),
}


_MOST_WARNINGS = 1000
"""A logger may live as long as its process."""
_SHARED_LOGS: dict[int, tuple[Any, Any]] = {}
"""By TensorRT's module, which is kept so that no other takes its place in memory."""


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
                elif severity == trt.ILogger.WARNING and len(self.warnings) < _MOST_WARNINGS:
                    self.warnings.append(msg)

        return Log()

    def shared_log(self) -> Any:
        """One logger for all that runs in this process, which it outlives.

        TensorRT takes the first that it is given for engines and contexts whoever made them («the current new logger is
        ignored»), and writes to it as long as any of them is there.
        """
        if id(self.trt) not in _SHARED_LOGS:
            _SHARED_LOGS[id(self.trt)] = (self.trt, self.new_log())
        return _SHARED_LOGS[id(self.trt)][1]


def version_numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, to compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def in_words(message: str) -> str:
    """A message on one line, without what the absence of a GPU adds."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and "catchCudaError" not in line]
    return " ".join(lines)[:400] or message[:400]


def no_start(package: Package, log: Any) -> InputError:
    """What to say where TensorRT's own objects cannot be made, which its Python interface tells as a TypeError."""
    return InputError(
        "driver",
        got=in_words((log.errors or ["one that it says nothing of"])[-1]),
        expected=f"a CUDA driver that {package.title} starts with",
        remedy="Update the driver, or install a TensorRT for the CUDA that it is of.",
    )


def find_package(names: Sequence[PackageName], form: Form = "decomposed", is_in_kit: bool = False) -> Package:
    """The first of these that is installed and new enough.

    Args:
        names: which will do.
        form: of what it is to build; all that run what is built already are new enough for the one that needs less.
        is_in_kit: on a device where Blockwright is not installed, so that no extra of it can be asked for.

    Raises:
        InputError: there is none, or it is too old or broken.
    """
    complaints: list[str] = []
    for each in names:
        found = _load(each, form)
        if isinstance(found, Package):
            return found
        complaints.append(found)
    # An extra has the name of the package that it brings.
    install = "pip install {}" if is_in_kit else "pip install 'blockwright[{}]'"
    installs = " or ".join(install.format(_KINDS[each].extra) for each in names)
    builds_other_form = any(isinstance(_load(each, "decomposed"), Package) for each in names)
    other_form = "Compile with --form decomposed, which this version builds, or pack the kit so. Else install"
    raise InputError(
        "tensorrt",
        got="; ".join(complaints),
        expected=" or ".join(
            f"{_KINDS[each].title} {_dotted(_KINDS[each].needed[form].oldest)} or later" for each in names
        ),
        remedy=f"{other_form if builds_other_form else 'Install'} it: {installs}. On a Jetson it comes with JetPack.",
    )


def _load(name: PackageName, form: Form) -> Package | str:
    """The package, or why it is of no use for a form."""
    kind, needed = _KINDS[name], _KINDS[name].needed[form]
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
        return f"no {kind.title}" if is_absent else f"a {kind.title} that does not load ({error})"
    numbers = version_numbers(trt.__version__)
    if numbers < needed.oldest:
        return f"{kind.title} {trt.__version__}, too old ({needed.why})"
    return Package(name=name, version=trt.__version__, trt=trt)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
