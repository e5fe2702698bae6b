"""Timing that holds on a shared machine.

Work of one thread is timed by the thread's own CPU clock, which stands still while another program has the core.
A sample is thrown away where the thread was interrupted, for its caches were then another's. Several things are
timed in turn, so that what drifts meets all of them alike; each turn begins unrecorded, until the work finds its
own weights in the caches and not those of the one before it. Work of several threads can only be timed by the wall
clock, and says so.

Between turns a judge, if there is one, times a small reference kernel (see `reference`), and times count in units of
what that took around them: a clock that is turned down, or a neighbour on the other half of the core, slows both.
Measured on a shared 2-core Zen 3 with other work on it, a model of 8 layers over 45 s: windows of a second differed
by 12 % as they were and by 1 % beside the reference when it read a prompt, by 11 and 6 % when it wrote a token. A turn
counts only where the reference was about as fast before it as after it, and not far from its best.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
_MOST_CHANGE = 0.04
"""A turn between two looks at the reference that differ by more is thrown away."""
_LEAST_CLEAN = 5
"""Where fewer samples were accepted, all of them have to do."""
WARM_UP = "half as many runs as the turn has samples, in each turn; the first few runs of all tell how many those are"
_INTERRUPTED = (
    f"on the thread's own clock: the thread was made to give up its core, or wall time exceeded its CPU time by "
    f"{_MAX_WALL_OVER_CPU - 1:.0%}"
)
OUTLIER_RULE = (
    f"{_INTERRUPTED}; on any: the reference kernel was far from its best, or changed by "
    f"{_MOST_CHANGE:.0%} during a turn. Times are scaled to the reference kernel at its best"
)
OUTLIER_RULE_ALONE = f"{_INTERRUPTED}; on the wall's clock: none. Times are as they were taken, beside no reference"
"""What a profile says about how it was measured, with a judge and without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The median of accepted samples with its 90 % interval."""

    median_s: float
    low_s: float
    high_s: float
    num_samples: int
    num_rejected: int
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a timing is made of: it can be kept, and joined with others of the same thing."""

    times_s: tuple[float, ...]
    """Those that were accepted, or all where nearly none was."""
    num_rejected: int
    clock: Clock
    reference_s: float | None
    """What the reference kernel is taken to need for these times; None where there was no judge."""
    is_disturbed: bool
    """Whether nearly no sample was accepted."""


class Judge(Protocol):
    """Tells how fast the machine is at the moment (see `reference`)."""

    least_s: float
    """The reference kernel at its best so far."""

    def look(self) -> float: ...

    def is_calm(self, look_s: float) -> bool: ...

    def await_calm(self) -> None: ...


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
    """Times several things in turn, round after round: the timings of what `sample_in_turn` samples."""
    return [timing_of([samples]) for samples in sample_in_turn(runs, effort, num_threads, derive)]


def sample_in_turn(
    runs: Sequence[Callable[[], object]], effort: Effort, num_threads: int = 1, derive: Sequence[np.ndarray] = ()
) -> list[Samples]:
    """Times several things in turn, round after round.

    Args:
        runs: what to time; each is called many times.
        effort: how long to measure each.
        num_threads: threads that the work uses.
        derive: weights of combinations to time as well, such as (-1, 1) for the second less the first; a
            round counts for a combination where all its parts were accepted.

    Returns:
        Samples of each run, then of each combination.
    """
    clock, judge = clock_for(num_threads), effort.judge
    once_s = [_time_once(run, effort.num_warm_up) for run in runs]
    repeats = [max(1, round(_MIN_CHUNK_S / max(each_s, 1e-9))) for each_s in once_s]
    num_samples = int(np.clip(_TURN_S / max(once_s), _LEAST_SAMPLES_PER_TURN, _MOST_SAMPLES_PER_TURN))
    columns: list[list[float]] = []
    accepted: list[list[bool]] = []
    left_s = effort.seconds * len(runs)
    while len(columns) < effort.max_samples and (left_s > 0 or len(columns) < effort.min_samples):
        if judge is not None:
            judge.await_calm()
        started = time.perf_counter()
        turns, looks = [], [_look(judge)]
        for run, repeat in zip(runs, repeats, strict=True):
            turns.append(_turn(run, repeat, num_samples, clock))
            looks.append(_look(judge))
        left_s -= time.perf_counter() - started
        beside = [(before + after) / 2 for before, after in pairwise(looks)]
        is_steady = [_is_steady(judge, before, after) for before, after in pairwise(looks)]
        for samples in zip(*turns, strict=True):
            columns.append([time_s / look_s for (time_s, _), look_s in zip(samples, beside, strict=True)])
            accepted.append([is_clean and steady for (_, is_clean), steady in zip(samples, is_steady, strict=True)])
    reference_s = None if judge is None else judge.least_s
    times, clean = np.array(columns) * (reference_s or 1.0), np.array(accepted)
    kept = [_kept(times[:, index], clean[:, index], clock, reference_s) for index in range(len(runs))]
    for weights in derive:
        kept.append(_kept(times @ weights, np.all(clean[:, weights != 0], axis=1), clock, reference_s))
    return kept


def timing_of(rounds: Sequence[Samples], reference_s: float | None = None) -> Timing:
    """The median of all rounds together, and its interval: by order statistics, and no less than rounds differ.

    Args:
        rounds: at least one; the disturbed ones count only where there are no others.
        reference_s: scales the times to this time of the reference kernel, such as the best of all rounds.
    """
    used = [each for each in rounds if not each.is_disturbed] or list(rounds)
    scaled = [_scaled(each, reference_s) for each in used]
    kept = np.sort(np.concatenate(scaled))
    half_width = _Z_90 * np.sqrt(len(kept)) / 2
    median = float(np.median(kept))
    low = float(kept[max(0, int(np.floor(len(kept) / 2 - half_width)))])
    high = float(kept[min(len(kept) - 1, int(np.ceil(len(kept) / 2 + half_width)))])
    if len(scaled) > 1:
        spread = _Z_90 * float(np.std([np.median(each) for each in scaled], ddof=1)) / np.sqrt(len(scaled))
        low, high = min(low, median - spread), max(high, median + spread)
    return Timing(
        median_s=median,
        low_s=low,
        high_s=high,
        num_samples=len(kept),
        num_rejected=sum(each.num_rejected for each in rounds),
        clock=used[0].clock,
    )


def _scaled(samples: Samples, reference_s: float | None) -> np.ndarray:
    times = np.array(samples.times_s)
    return times if reference_s is None or samples.reference_s is None else times * reference_s / samples.reference_s


def clock_for(num_threads: int, system: str = sys.platform) -> Clock:
    """The clock that work of so many threads is timed by, on this system or another."""
    return "thread_cpu" if num_threads == 1 and system.lower() == "linux" else "wall"


def _look(judge: Judge | None) -> float:
    """What the reference takes now; without one, times count as they are."""
    return 1.0 if judge is None else judge.look()


def _is_steady(judge: Judge | None, before_s: float, after_s: float) -> bool:
    is_calm = judge is None or judge.is_calm(max(before_s, after_s))
    return is_calm and abs(after_s / before_s - 1) <= _MOST_CHANGE


def _turn(run: Callable[[], object], repeat: int, num_samples: int, clock: Clock) -> list[tuple[float, bool]]:
    for _ in range(max(_LEAST_SAMPLES_PER_TURN, num_samples // 2)):
        run()
    return [sample(run, repeat, clock) for _ in range(num_samples)]


def sample(run: Callable[[], object], repeat: int, clock: Clock) -> tuple[float, bool]:
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


def _kept(times: np.ndarray, is_clean: np.ndarray, clock: Clock, reference_s: float | None) -> Samples:
    is_disturbed = bool(is_clean.sum() < _LEAST_CLEAN)
    return Samples(
        times_s=tuple(map(float, times if is_disturbed else times[is_clean])),
        num_rejected=int((~is_clean).sum()),
        clock=clock,
        reference_s=reference_s,
        is_disturbed=is_disturbed,
    )
