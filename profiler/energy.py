"""Energy from the device's own counters: joules that have gone by, not power that was polled.

A counter is read before and after some seconds of repeated work, for counters move about every 100 ms and what a
GPU's polled power shows covers a quarter of the time only (Yang et al. 2023, arXiv 2312.02741). Where a device has no
counter of energy but a sensor of power, as Jetsons have, the sensor is read all the while and summed up; that is
`SummedPower`. A counter that may not be read is an error that says how to allow it, never zero.
"""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Figure

EnergySource = Literal["rapl", "nvml", "ina"]

_SAMPLING_S = 0.05
_WINDOW_S, _COOL_S, _NUM_WINDOWS = 5.0, 5.0, 3
"""Zeus's advice: windows and pauses of some seconds each, and more than one trial."""


class Counter(Protocol):
    """Joules since some moment in the past."""

    source: EnergySource

    def read_j(self) -> float: ...


class Rapl:
    """Intel's and AMD's counters of whole packages, as Linux' powercap shows them; each wraps at its own range."""

    source: EnergySource = "rapl"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = list(zones)
        self._ranges_uj = [int(_read(zone / "max_energy_range_uj")) for zone in zones]
        self._last_uj = [int(_read(zone / "energy_uj")) for zone in zones]
        self._total_uj = 0

    def read_j(self) -> float:
        """Joules since this was made. To be read at least once while a counter wraps, which takes minutes."""
        for index, zone in enumerate(self._zones):
            now_uj = int(_read(zone / "energy_uj"))
            moved_uj = now_uj - self._last_uj[index]
            self._total_uj += moved_uj if moved_uj >= 0 else moved_uj + self._ranges_uj[index]
            self._last_uj[index] = now_uj
        return self._total_uj / 1e6


class Nvml:
    """The counter of an NVIDIA GPU since its driver was loaded (Volta and later)."""

    source: EnergySource = "nvml"

    def __init__(self, read_mj: Callable[[], int]) -> None:
        self._read_mj = read_mj

    def read_j(self) -> float:
        """Joules since the driver was loaded."""
        return self._read_mj() / 1e3


class SummedPower:
    """The power sensor of a Jetson's input, read all the while by a thread and summed up.

    Args:
        voltage: file of millivolts.
        current: file of milliamperes.
    """

    source: EnergySource = "ina"

    def __init__(self, voltage: Path, current: Path) -> None:
        self._voltage, self._current = voltage, current
        self._total_j, self._at_s = 0.0, time.monotonic()
        self._power_w = self._read_w()
        self._lock = threading.Lock()
        threading.Thread(target=_keep_summing, args=(weakref.ref(self),), daemon=True).start()

    def read_j(self) -> float:
        """Joules since this was made."""
        self.add()
        return self._total_j

    def add(self) -> None:
        """Adds what was drawn since the last reading."""
        with self._lock:
            now_s, power_w = time.monotonic(), self._read_w()
            self._total_j += (now_s - self._at_s) * (power_w + self._power_w) / 2
            self._at_s, self._power_w = now_s, power_w

    def _read_w(self) -> float:
        return int(_read(self._voltage)) * int(_read(self._current)) / 1e6


def _keep_summing(summed: "weakref.ref[SummedPower]") -> None:
    """Reads the sensor for as long as anyone holds the sum, and for as long as there is a sensor."""
    while (held := summed()) is not None:
        try:
            held.add()
        except OSError:
            return
        del held
        time.sleep(_SAMPLING_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyEffort:
    """How long to measure."""

    window_s: float = _WINDOW_S
    cool_s: float = _COOL_S
    num_windows: int = _NUM_WINDOWS


def find_counter(root: Path = Path("/"), nvml_mj: Callable[[], int] | None = None) -> Counter | None:
    """The device's counter of energy, the narrowest first: a GPU's, a Jetson's input, a CPU's packages.

    Args:
        root: where `sys` is.
        nvml_mj: reads the GPU's counter in millijoules, where there is one.

    Returns:
        None where the device has no counter.

    Raises:
        InputError: there is one, and this user may not read it.
    """
    if nvml_mj is not None:
        return Nvml(nvml_mj)
    for label in sorted(root.glob("sys/class/hwmon/hwmon*/in*_label")):
        if _read(label) == "VDD_IN":
            number = label.name.removeprefix("in").removesuffix("_label")
            return SummedPower(label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
    zones = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]*"))
    packages = [zone for zone in zones if _read(zone / "name").startswith("package")]
    return Rapl(packages) if packages else None


def measure_power(run: Callable[[], object], counter: Counter, effort: EnergyEffort | None = None) -> Figure:
    """The power drawn while some work is repeated, from a counter; the interval holds every window.

    Args:
        run: the work.
        counter: of the device that it runs on.
        effort: how long.

    Raises:
        InputError: the counter stood still.
    """
    effort = effort or EnergyEffort()
    powers = np.array([_one_window(run, counter, effort) for _ in range(effort.num_windows)])
    if (powers <= 0).any():
        raise InputError(
            f"energy counter {counter.source}",
            got=f"no energy in {effort.window_s:g} s of work",
            expected="a counter that moves",
            remedy="Measure for longer, or leave energy out: it is then modelled from the datasheet's power.",
        )
    return Figure(
        value=float(powers.mean()),
        low=float(powers.min()),
        high=float(powers.max()),
        origin="measured",
        source=f"the mean of {len(powers)} windows of {effort.window_s:g} s, by the counter {counter.source}",
    )


def _one_window(run: Callable[[], object], counter: Counter, effort: EnergyEffort) -> float:
    time.sleep(effort.cool_s)
    before_j, started = counter.read_j(), time.monotonic()
    while time.monotonic() - started < effort.window_s:
        run()
    spent_j = counter.read_j() - before_j
    return spent_j / (time.monotonic() - started)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise InputError(
            f"energy counter {path}",
            got="no permission to read it",
            expected="a counter that this user may read",
            remedy=f"Run as root, or allow it: sudo chmod a+r {path}.",
        ) from error
