"""Timing that holds on a shared machine.

Work of one thread is timed by the thread's own CPU clock, which stands still while another program has the core.
A sample is thrown away where the thread was interrupted, for its caches were then another's. Several things are
timed in turn, so that what drifts meets all of them alike; each turn begins unrecorded, until the work finds its
own weights in the caches and not those of the one before it. A round of turns counts only where the machine was
calm before and after it, if there is a judge of that. Work of several threads can only be timed by the wall clock, and
says so.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

if sys.platform == "linux":
    import resource

Clock = Literal["thread_cpu", "wall"]

_MIN_CHUNK_S = 2e-4
"""Shorter work is repeated within a sample until it takes this long."""
_MAX_WALL_OVER_CPU = 1.1
"""A sample whose wall time exceeds its CPU time by more was interrupted."""
_TURN_S, _LEAST_SAMPLES_PER_TURN, _MOST_SAMPLES_PER_TURN = 0.01, 3, 16
"""A turn takes about this long, and half as many runs before it to warm up. Measured on a 2-core Zen 3: six 7 MB models
in turn took 628 µs a step cold, 615 after one run, 428 after two, 400 after four, 403 running alone; a pair of them 435
and 264 in turns of three samples, 393 and 238 in turns of sixteen, where the first took 397 running alone."""
_Z_90 = 1.645
WARM_UP = "half as many runs as the turn has samples, in each turn; the first few runs of all tell how many those are"
OUTLIER_RULE = (
    f"on the thread's own clock: the thread was made to give up its core, or wall time exceeded its CPU time by "
    f"{_MAX_WALL_OVER_CPU - 1:.0%}; on any: the reference kernel was slower than at its best"
)
"""What a profile says about how it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The median of accepted samples with its 90 % interval."""

    median_s: float
    low_s: float
    high_s: float
    num_samples: int
    num_rejected: int
    clock: Clock


class Judge(Protocol):
    """Tells whether the machine is calm (see `reference`)."""

    def is_calm(self) -> bool: ...

    def await_calm(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure one thing, and who says whether the machine is calm meanwhile."""

    seconds: float = 0.25
    min_samples: int = 30
    max_samples: int = 400
    num_warm_up: int = 5
    judge: Judge | None = None


def time_in_turn(
    runs: Sequence[Callable[[], object]], effort: Effort, num_threads: int = 1, derive: Sequence[np.ndarray] = ()
) -> list[Timing]:
    """Times several things in turn, round after round.

    Args:
        runs: what to time; each is called many times.
        effort: how long to measure each.
        num_threads: threads that the work uses.
        derive: weights of combinations to time as well, such as (-1, 1) for the second less the first; a
            round counts for a combination where all its parts were accepted.

    Returns:
        A timing for each run, then one for each combination.
    """
    clock = clock_for(num_threads)
    once_s = [_time_once(run, effort.num_warm_up) for run in runs]
    repeats = [max(1, round(_MIN_CHUNK_S / max(each_s, 1e-9))) for each_s in once_s]
    num_samples = int(np.clip(_TURN_S / max(once_s), _LEAST_SAMPLES_PER_TURN, _MOST_SAMPLES_PER_TURN))
    columns: list[list[float]] = []
    accepted: list[list[bool]] = []
    left_s = effort.seconds * len(runs)
    while len(columns) < effort.max_samples and (left_s > 0 or len(columns) < effort.min_samples):
        was_calm = effort.judge is None or effort.judge.await_calm()
        started = time.perf_counter()
        turns = [_turn(run, repeat, num_samples, clock) for run, repeat in zip(runs, repeats, strict=True)]
        left_s -= time.perf_counter() - started
        is_calm = was_calm and (effort.judge is None or effort.judge.is_calm())
        for samples in zip(*turns, strict=True):
            columns.append([time_s for time_s, _ in samples])
            accepted.append([is_calm and is_clean for _, is_clean in samples])
    times, clean = np.array(columns), np.array(accepted)
    timings = [_summarise(times[:, index], clean[:, index], clock) for index in range(len(runs))]
    for weights in derive:
        is_clean = np.all(clean[:, weights != 0], axis=1)
        timings.append(_summarise(times @ weights, is_clean, clock))
    return timings


def clock_for(num_threads: int, system: str = sys.platform) -> Clock:
    """The clock that work of so many threads is timed by, on this system or another."""
    return "thread_cpu" if num_threads == 1 and system.lower() == "linux" else "wall"


def _turn(run: Callable[[], object], repeat: int, num_samples: int, clock: Clock) -> list[tuple[float, bool]]:
    for _ in range(max(_LEAST_SAMPLES_PER_TURN, num_samples // 2)):
        run()
    return [_sample(run, repeat, clock) for _ in range(num_samples)]


def _sample(run: Callable[[], object], repeat: int, clock: Clock) -> tuple[float, bool]:
    if clock == "wall":
        started = time.perf_counter_ns()
        for _ in range(repeat):
            run()
        return (time.perf_counter_ns() - started) / 1e9 / repeat, True
    interruptions = _interruptions()
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    for _ in range(repeat):
        run()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    is_clean = _interruptions() == interruptions
    return cpu / 1e9 / repeat, is_clean and wall <= _MAX_WALL_OVER_CPU * cpu


def _interruptions() -> int:
    """How often this thread was made to give up its core."""
    assert sys.platform == "linux"  # the only system that counts this per thread
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _time_once(run: Callable[[], object], num_warm_up: int) -> float:
    """The least wall time of a few runs."""
    times = []
    for _ in range(num_warm_up):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def _summarise(times: np.ndarray, is_clean: np.ndarray, clock: Clock) -> Timing:
    """Median and its interval by order statistics; where nearly nothing was clean, all samples have to do."""
    kept = np.sort(times[is_clean] if is_clean.sum() >= 5 else times)
    half_width = _Z_90 * np.sqrt(len(kept)) / 2
    low = kept[max(0, int(np.floor(len(kept) / 2 - half_width)))]
    high = kept[min(len(kept) - 1, int(np.ceil(len(kept) / 2 + half_width)))]
    return Timing(
        median_s=float(np.median(kept)),
        low_s=float(low),
        high_s=float(high),
        num_samples=len(kept),
        num_rejected=int((~is_clean).sum()),
        clock=clock,
    )
