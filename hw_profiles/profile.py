"""A hardware profile: what a device was measured to do, for the blocks of one shape of model.

Times are medians of accepted samples with the 90 % interval of the median; every row says where it comes from. How a
profile is kept as files is `folder`'s affair.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from blockwright.cost import Origin
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.conditions import Conditions
from blockwright.hw_profiles.device import OPERATORS, OPERATORS_SWITCH, RUNTIMES_OWN, Device
from blockwright.hw_profiles.provenance import AccuracyRow, Coverage, Method
from blockwright.hw_profiles.tried import TriedChild
from blockwright.spec import Model, Part

SCHEMA_VERSION = 2

LocalBackend = Literal["onnxruntime", "torch"]
"""Runtimes that are measured here, part by part."""

ImportedBackend = Literal["llama.cpp", "vllm", "tensorrt"]
"""Runtimes whose own benchmarks are read in: times of whole models alone. TensorRT's blocks are measured here too."""

Backend = Literal[LocalBackend, ImportedBackend]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
IMPORTED: tuple[Backend, ...] = get_args(ImportedBackend)
OperatorKind = Literal["matmul", "attend", "elementwise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is run: so many new tokens of so many sequences, over caches of so many slots."""

    batch: int
    new_tokens: int
    """1 when decoding; the tokens of the chunk in prefill."""
    slots: int
    """For imported times the tokens that they hold, halfway through where they grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRow:
    """What one mixer or ffn adds to the time of a model, at one point."""

    backend: Backend
    format: str
    part: Part
    variant: str
    """`variant_name` of the mixer or ffn."""
    point: Point
    time_s: float
    low_s: float
    high_s: float
    num_samples: int
    num_rejected: int
    """Samples thrown away because the thread was interrupted or the machine disturbed."""
    origin: Origin

    def __post_init__(self) -> None:
        # A part's time is a difference of two models' times, which may come out as nothing.
        if not 0 <= self.low_s <= self.time_s <= self.high_s < math.inf:
            raise ValueError(f"0 <= low_s <= time_s <= high_s, all of them finite, for {self.part} {self.variant}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRow:
    """The time of a whole model at one point, from tokens to the next token."""

    backend: Backend
    format: str
    layers: tuple[tuple[str, str], ...]
    """`variant_name` of each layer's mixer and ffn."""
    is_anchor: bool
    """Anchors fix what a model costs beyond its blocks; the other rows are held out and show the error."""
    point: Point
    time_s: float
    low_s: float
    high_s: float
    num_samples: int
    num_rejected: int
    origin: Origin

    def __post_init__(self) -> None:
        if not (0 <= self.low_s <= self.time_s <= self.high_s < math.inf and self.time_s > 0):
            raise ValueError("0 <= low_s <= time_s <= high_s, time_s > 0, all of them finite, for a whole model")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """Memory of a whole model, beyond what the empty runtime takes: of a process of its own, or of an accelerator."""

    backend: Backend
    format: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    peak_bytes: int
    exact_bytes: int
    """What of it weights and caches are, by counting; the rest is the runtime's workspace."""
    origin: Origin

    def __post_init__(self) -> None:
        if self.peak_bytes < 1 or self.exact_bytes < 0:
            raise ValueError("peak_bytes > 0 and exact_bytes >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRow:
    """The time of one operator by itself."""

    backend: Backend
    kind: OperatorKind
    fields: dict[str, int | str | bool]
    """What the operator is: the fields of its class in `profiler.operators`, which this room may not know."""
    time_s: float
    low_s: float
    high_s: float
    num_samples: int
    num_rejected: int
    origin: Origin

    def __post_init__(self) -> None:
        if not (0 <= self.low_s <= self.time_s <= self.high_s < math.inf and self.time_s > 0):
            raise ValueError("0 <= low_s <= time_s <= high_s, time_s > 0, all of them finite, for an operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything that one device was measured to do."""

    schema_version: Literal[2]
    name: str
    device: Device
    conditions: Conditions
    software: dict[str, str]
    num_threads: int
    created: str
    """Date and time in UTC, ISO 8601."""
    model: Model | None
    """The parent whose blocks were measured, whose weights do not matter to time; None where operators alone were."""
    ceilings: Ceilings
    method: Method | None
    """None where nothing was measured: all that is known stands in documents."""
    coverage: Coverage
    accuracy: tuple[AccuracyRow, ...] = ()
    """How well the profile foretells what it was not made from; empty until that was tried."""
    tried: tuple[TriedChild, ...] = ()
    """Children that a search chose and that were measured since; times of children go by them (`profiler.tried`)."""
    times: tuple[TimeRow, ...] = ()
    wholes: tuple[WholeRow, ...] = ()
    memory: tuple[MemoryRow, ...] = ()
    operators: tuple[OperatorRow, ...] = ()


def parent_of(profile: Profile) -> Model:
    """The model whose blocks a profile is about.

    Raises:
        InputError: it is about none.
    """
    if profile.model is None:
        raise InputError(
            f"profile {profile.name}: model",
            got="none: this profile is of a device, not of a parent's blocks on it",
            expected="a profile of a parent",
            remedy="Measure the parent's blocks: blockwright profile --for PARENT.",
        )
    return profile.model


def is_imported(profile: Profile, backend: Backend) -> bool:
    """Whether of a runtime whole models' times alone are known, as its own benchmark tells them, and no block's."""
    return backend in IMPORTED and not any(row.backend == backend for row in profile.times)


def check_is_this_machine(profile: Profile, device: Device, software: dict[str, str]) -> None:
    """Refuses a profile of another machine, or of other versions of what runs on it.

    Raises:
        InputError: says what differs.
    """
    if profile.device.digest != device.digest:
        raise InputError(
            f"profile {profile.name}",
            got=_words(profile.device),
            expected=f"this machine: {_words(device)}",
            remedy="Measure this machine with `blockwright profile`, or measure the engine on the other one.",
        )
    for package in ("onnxruntime", "onnxruntime-gpu", *([OPERATORS] if _has_onnxruntime(profile) else [])):
        none = RUNTIMES_OWN if package == OPERATORS else "none"
        before, now = (each.get(package, none) for each in (profile.software, software))
        if before != now:
            raise InputError(
                f"profile {profile.name}: {package}",
                got=before,
                expected=now,
                remedy=_remedy(before, now) if package == OPERATORS else _ANOTHER_VERSION,
            )


_ANOTHER_VERSION = "Another version runs at another speed: profile again."


def _has_onnxruntime(profile: Profile) -> bool:
    """Whether anything in it was measured in ONNX Runtime, so that it says something of its operators."""
    rows = (*profile.times, *profile.wholes, *profile.memory, *profile.operators)
    return any(row.backend == "onnxruntime" for row in rows)


def _remedy(before: str, now: str) -> str:
    """For a profile measured on other operators than those that run now; kits know the runtime's alone."""
    if before == RUNTIMES_OWN:
        return f"Set {OPERATORS_SWITCH}={RUNTIMES_OWN} to run what it was measured with, or profile again."
    if now == RUNTIMES_OWN:
        return (
            f"To run what it was measured with, unset {OPERATORS_SWITCH}, install a C compiler (cc, gcc or clang), or "
            "let the cache folder be written: `blockwright generate` says which. Or profile again."
        )
    return _ANOTHER_VERSION


def _words(device: Device) -> str:
    """A GPU's cores are not known."""
    return device.model if device.num_cores is None else f"{device.model}, {device.num_cores} cores"
