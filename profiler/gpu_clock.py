"""Timing that holds on a GPU. Loads no torch: what touches the device is in `gpu_device`.

A sample is one replay of a captured graph between two events, short ones behind a replay that nobody times, so that
the host's launches show only of work that is shorter than they are. Before the first one the work runs until clocks
have left idle. Samples are taken until the interval of their median is narrow, or has stopped to narrow, or time is up
(NVBench's rule); why it ended is kept. The driver is asked for clock, temperature and throttling before and after.
Where the clock was far below the reference clock, all samples are thrown away and taken again after a pause; what held
the clock down is told with the timing.

A fixed reference kernel is timed every few cases. What it took around a case, over what it took at the median of all,
is the drift there, and is divided out of the case's times.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from blockwright.hw_profiles.gpu_state import GpuState

StopReason = Literal["interval", "settled", "timeout"]
"""The interval is narrow, or it has stopped to narrow, or time is up."""
Sample = Callable[[], float]
"""Does something once and says how many seconds that took."""

_Z_90, _Z_95 = 1.645, 1.960
_MOST_NARROWING = 0.9
"""An interval that all samples leave at more than this share of what half of them left has stopped to narrow: noise of
independent samples would leave 0.71."""
_LEAST_CLOCK = 0.75
"""Of the reference clock (NVBench's default)."""
_MOST_TRIES, _PAUSE_S = 3, 2.0
_COLD_CACHES = 5
"""Buffers are rotated over so many times the last cache: FlashInfer's rule."""
_MOST_COPIES = 512
"""Nodes beyond these take longer to capture than to time."""
_LOOKS_NEARBY = 3
WARM_UP = "at least 3 calls and 200 ms before each measurement"
OUTLIER_RULE = (
    f"all samples of a measurement where the SM clock was below {_LEAST_CLOCK:.0%} of that under the reference kernel "
    "before or after; times are divided by the local drift of the reference kernel"
)
"""What a profile says about how it was measured."""


class GpuDevice(Protocol):
    """What a clock needs of a device."""

    cache_bytes: int

    def ready(self, run: Callable[[], object]) -> Sample:
        """Captures some work, so that a sample replays it."""
        ...

    def state(self) -> GpuState | None: ...

    def now_s(self) -> float: ...

    def pause(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEffort:
    """How long to measure one thing."""

    min_samples: int = 10
    relative_half_width: float = 0.005
    """Of the median's 95 % interval."""
    limit_s: float = 0.5
    warm_up_s: float = 0.2
    warm_up_calls: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTiming:
    """The median of samples with its 90 % interval, their spread, and how the GPU was meanwhile."""

    median_s: float
    low_s: float
    high_s: float
    p10_s: float
    p90_s: float
    num_samples: int
    num_rejected: int
    stopped: StopReason
    throttles: tuple[str, ...]
    """What held the clock down before or after; where there is any, the time is not the device's best."""
    is_slow_clock: bool
    """Whether the clock stayed far below the reference clock for all tries."""
    sm_hz: float | None
    celsius: float | None
    """The latter two after the last sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the reference kernel took, by the number of cases that were measured before."""

    position: int
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How measurements differ from the same ones made again at the end, relative, with the drift divided out."""

    num_repeated: int
    median: float
    worst: float


class GpuClock:
    """Times samples on a device by one effort.

    Args:
        device: where they run.
        effort: how long each.
        reference_hz: the SM clock to expect; None where the driver does not tell.
    """

    def __init__(self, device: GpuDevice, effort: GpuEffort, reference_hz: float | None) -> None:
        self.device, self.effort, self.reference_hz = device, effort, reference_hz

    def time(self, sample: Sample, parts: int = 1) -> GpuTiming:
        """Times something that is so many equal parts, and gives the time of one part."""
        num_rejected = 0
        for _ in range(_MOST_TRIES - 1):
            timing = self._try(sample, parts, num_rejected)
            if not timing.is_slow_clock:
                return timing
            num_rejected += timing.num_samples
            self.device.pause(_PAUSE_S)
        return self._try(sample, parts, num_rejected)

    def _try(self, sample: Sample, parts: int, num_rejected: int) -> GpuTiming:
        """As many samples as the stop rule asks for, between two looks at the device."""
        warm_up(sample, self.device, self.effort)
        before = self.device.state()
        times, reason = _samples(sample, self.device, self.effort)
        states = [state for state in (before, self.device.state()) if state is not None]
        is_slow = any(is_slow_clock(state, self.reference_hz) for state in states)
        return _timing(np.array(times) / parts, num_rejected, reason, states, is_slow)


def warm_up(sample: Sample, device: GpuDevice, effort: GpuEffort) -> None:
    """Runs until clocks have left idle, unrecorded."""
    started, calls = device.now_s(), 0
    while calls < effort.warm_up_calls or device.now_s() - started < effort.warm_up_s:
        sample()
        calls += 1


def stop_reason(times_s: Sequence[float], elapsed_s: float, effort: GpuEffort) -> StopReason | None:
    """Whether to stop sampling, and why; None to go on. Time that is up is no reason below the least samples."""
    number = len(times_s)
    if number < effort.min_samples:
        return None
    half_width = relative_half_width(times_s)
    if half_width <= effort.relative_half_width:
        return "interval"
    if number >= 2 * effort.min_samples and half_width > _MOST_NARROWING * relative_half_width(times_s[: number // 2]):
        return "settled"
    return "timeout" if elapsed_s >= effort.limit_s else None


def relative_half_width(times_s: Sequence[float], z: float = _Z_95) -> float:
    """Half the interval of the median, by order statistics, as a share of the median; infinite where that is 0."""
    low, median, high = _interval(np.sort(times_s), z)
    return (high - low) / 2 / median if median > 0 else math.inf


def num_copies(weight_bytes: int, cache_bytes: int) -> int:
    """How many copies of some weights to rotate over, so that each is out of the cache when its turn comes again."""
    return min(_MOST_COPIES, max(1, -(-_COLD_CACHES * cache_bytes // max(1, weight_bytes))))


def is_slow_clock(state: GpuState, reference_hz: float | None) -> bool:
    """Whether the clock is too far below the reference clock to measure; not where either is unknown."""
    return None not in (state.sm_hz, reference_hz) and state.sm_hz < _LEAST_CLOCK * reference_hz  # type: ignore[operator]


def slope_of(small: Sample, large: Sample) -> Sample:
    """Samples of what the larger work takes beyond the smaller one, each from the two in turn."""
    return lambda: large() - small()


def local_drift(looks: Sequence[Look], position: int) -> float:
    """How slow the device was around a case: the nearest looks' median over that of all; 1 without looks."""
    if not looks:
        return 1.0
    nearest = sorted(looks, key=lambda look: abs(look.position - position))[:_LOOKS_NEARBY]
    return float(np.median([look.time_s for look in nearest]) / np.median([look.time_s for look in looks]))


def drift_between(first_s: Sequence[float], again_s: Sequence[float]) -> Drift | None:
    """What repeats say, pair by pair; None where there are none. A part that took no time is left out."""
    changes = [abs(again / first - 1) for first, again in zip(first_s, again_s, strict=True) if first > 0]
    if not changes:
        return None
    return Drift(num_repeated=len(changes), median=float(np.median(changes)), worst=max(changes))


def _samples(sample: Sample, device: GpuDevice, effort: GpuEffort) -> tuple[list[float], StopReason]:
    started, times = device.now_s(), list[float]()
    while (reason := stop_reason(times, device.now_s() - started, effort)) is None:
        times.append(sample())
    return times, reason


def _interval(ordered_s: np.ndarray, z: float) -> tuple[float, float, float]:
    """The median between the order statistics that enclose it with a chance that z stands for."""
    number = len(ordered_s)
    half = z * math.sqrt(number) / 2
    low = ordered_s[max(0, math.floor(number / 2 - half))]
    high = ordered_s[min(number - 1, math.ceil(number / 2 + half))]
    return float(low), float(np.median(ordered_s)), float(high)


def _timing(
    times_s: np.ndarray, num_rejected: int, stopped: StopReason, states: Sequence[GpuState], is_slow: bool
) -> GpuTiming:
    low, median, high = _interval(np.sort(times_s), _Z_90)
    return GpuTiming(
        median_s=median,
        low_s=low,
        high_s=high,
        p10_s=float(np.quantile(times_s, 0.1)),
        p90_s=float(np.quantile(times_s, 0.9)),
        num_samples=len(times_s),
        num_rejected=num_rejected,
        stopped=stopped,
        throttles=tuple(dict.fromkeys(name for state in states for name in state.throttles)),
        is_slow_clock=is_slow,
        sm_hz=states[-1].sm_hz if states else None,
        celsius=states[-1].celsius if states else None,
    )
