"""A hardware profile: what a device was measured to do, for the blocks of one shape of model.

One JSON file per device. Times are medians of accepted samples with the 90 % interval of the median; every row
says where it comes from. The reader refuses unknown fields and figures that cannot be.
"""

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from blockwright.cost import Origin
from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.device import Device
from blockwright.spec import Model, Part
from blockwright.strict import from_data, to_data

SCHEMA_VERSION = 1
_HERE = "blockwright.hw_profiles"

Backend = Literal["onnxruntime", "torch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is run: so many new tokens of so many sequences, over caches of so many slots."""

    batch: int
    new_tokens: int
    """1 when decoding; the tokens of the chunk in prefill."""
    slots: int


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
    """Memory of a whole model in a process of its own, beyond what the empty runtime takes."""

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
class PowerRow:
    """The power that the device draws while whole models run on it, as its counters tell."""

    power_w: float
    low_w: float
    high_w: float
    num_samples: int
    origin: Origin

    def __post_init__(self) -> None:
        if not 0 < self.low_w <= self.power_w <= self.high_w < math.inf:
            raise ValueError("0 < low_w <= power_w <= high_w, all of them finite")
        if self.num_samples < 1:
            raise ValueError("num_samples > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The most that the runtime got out of the device, with the profile's threads."""

    read_bytes_per_s: float
    """Streaming a matrix of 256 MiB through a matrix-vector product."""
    fp32_flop_per_s: float
    """A product of two 1024 × 1024 matrices."""
    reference_s: float
    """A small fixed piece of work at its best: slower, the machine is disturbed (`profiler/reference.py`)."""

    def __post_init__(self) -> None:
        if not all(0 < figure < math.inf for figure in (self.read_bytes_per_s, self.fp32_flop_per_s, self.reference_s)):
            raise ValueError("finite ceilings above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything that one device was measured to do."""

    schema_version: Literal[1]
    name: str
    device: Device
    software: dict[str, str]
    num_threads: int
    created: str
    """Date and time in UTC, ISO 8601."""
    model: Model
    """The parent whose blocks were measured; its weights do not matter to time."""
    ceilings: Ceilings
    times: tuple[TimeRow, ...]
    wholes: tuple[WholeRow, ...]
    memory: tuple[MemoryRow, ...]
    power: PowerRow | None = None
    """None where no counter tells it: energy is then unknown, not nothing."""


def write_profile(profile: Profile, path: Path) -> None:
    """Writes a profile, whole or not at all."""
    write_json(path, to_data(profile))


def read_profile(name: str | Path) -> Profile:
    """Reads a profile from a file, or one that ships with Blockwright by its name.

    Raises:
        InputError: there is none of that name, or it holds what no profile can.
    """
    path = Path(name)
    if not path.exists():
        shipped = {Path(file.name).stem: file for file in resources.files(_HERE).iterdir()}
        if str(name) not in shipped_profiles():
            raise InputError(
                "profile",
                got=str(name),
                expected="a profile's file, or one of " + ", ".join(shipped_profiles()),
                remedy="Measure this machine with `blockwright profile`.",
            )
        with resources.as_file(shipped[str(name)]) as file:
            return from_data(Profile, read_json(file), str(name))
    return from_data(Profile, read_json(path), str(path))


def shipped_profiles() -> list[str]:
    """The names of the profiles that ship with Blockwright."""
    names = (Path(file.name) for file in resources.files(_HERE).iterdir())
    return sorted(name.stem for name in names if name.suffix == ".json")


def check_is_this_machine(profile: Profile, device: Device, software: dict[str, str]) -> None:
    """Refuses a profile of another machine, or of other versions of what runs on it.

    Raises:
        InputError: says what differs.
    """
    if profile.device.digest != device.digest:
        raise InputError(
            f"profile {profile.name}",
            got=f"{profile.device.model}, {profile.device.num_cores} cores",
            expected=f"this machine: {device.model}, {device.num_cores} cores",
            remedy="Measure this machine with `blockwright profile`, or measure the engine on the other one.",
        )
    for package in ("onnxruntime", "onnxruntime-gpu"):
        if profile.software.get(package) != software.get(package):
            raise InputError(
                f"profile {profile.name}: {package}",
                got=profile.software.get(package, "none"),
                expected=software.get(package, "none"),
                remedy="Another version runs at another speed: profile again.",
            )
