"""Timing that holds on a shared machine.

Work of one thread is timed by the thread's own CPU clock, which stands still while another program has the core.
A sample is thrown away where the thread was interrupted, for its caches were then another's. Several things are
timed in turn, so that what drifts meets all of them alike; each turn begins unrecorded, until the work finds its
own weights in the caches and not those of the one before it. Work of several threads can only be timed by the wall
clock, and says so.

Neighbours on the other half of the core or in the shared cache slow work down without interrupting it, most of them
for milliseconds, some for minutes. What is told is therefore what a thing takes when it is left alone: the low decile
of its turns. Between turns a judge, if there is one, times a small reference kernel (see `reference`), and times count
in units of that kernel's low decile in the same stretch. Measured on a shared 2-core Zen 3 in five processes over five
minutes, a model of 7 MB by stretches of 15 s: medians differed by 13 % when it wrote a token and by 7 % when it read a
prompt, low deciles by 5 and 5 %, low deciles beside the reference by 2 and 2 %; by stretches of 5 s, 16, 9, 7, 5, 5 and
3 %. So many things are timed together, and each again and again, rather than one for long.
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
_TURN_S, _MOST_SAMPLES_PER_TURN = 0.01, 16
"""A turn takes about this long, and half as many runs before it to warm up. Measured on a 2-core Zen 3: six 7 MB models
in turn took 628 µs a step cold, 615 after one run, 428 after two, 400 after four, 403 running alone; a pair of them 435
and 264 in turns of three samples, 393 and 238 in turns of sixteen, where the first took 397 running alone."""
CALM = 0.1
"""The share of turns that are taken to have been left alone."""
_Z_90 = 1.645
_RESAMPLES = 200
"""Of the turns, for an interval."""
_LEAST_CLEAN = 3
"""Where fewer turns were accepted, all of them have to do."""
_MOST_OVER_BEST = 1.25
"""A stretch in which the reference, at its low decile, took longer than at its best by this factor was disturbed."""
WARM_UP = "half as many runs as the turn has samples, in each turn; the first few runs of all tell how many those are"
_INTERRUPTED = (
    f"on the thread's own clock: the thread was made to give up its core, or wall time exceeded its CPU time by "
    f"{_MAX_WALL_OVER_CPU - 1:.0%}"
)
_STATISTIC = f"Times are the {CALM:.0%} quantile over turns of their medians"
OUTLIER_RULE = f"{_INTERRUPTED}. {_STATISTIC}, scaled to the reference kernel at its best by that of the same stretch"
OUTLIER_RULE_ALONE = f"{_INTERRUPTED}. {_STATISTIC}, as they were taken, beside no reference"
"""What a profile says about how it was measured, with a judge and without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a thing takes when it is left alone, with its 90 % interval."""

    calm_s: float
    low_s: float
    high_s: float
    typical_s: float
    """The median of its turns as they were, neighbours and all."""
    num_samples: int
    num_rejected: int
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a timing is made of: it can be kept, and joined with others of the same thing."""

    turns_s: tuple[tuple[float, ...], ...]
    """For each accepted turn, what each of the things that are combined took: the median of its clean samples."""
    weights: tuple[float, ...]
    """Of the things that are combined, such as (-1, 1) for the second less the first."""
    reference_s: float | None
    """What the reference kernel took in that stretch when it was left alone; None where there was no judge."""
    num_samples: int
    num_rejected: int
    clock: Clock
    is_disturbed: bool
    """Whether nearly no turn was accepted, or the reference was far from its best."""


class Judge(Protocol):
    """Tells how fast the machine is at the moment (see `reference`)."""

    least_s: float
    """The reference kernel at its best: its low decile in the calmest stretch so far."""

    def look(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure one thing, and who says how fast the machine is meanwhile."""

    seconds: float = 0.25
    min_turns: int = 8
    max_turns: int = 200
    num_warm_up: int = 5
    judge: Judge | None = None


def time_in_turn(
    runs: Sequence[Callable[[], object]], effort: Effort, num_threads: int = 1, derive: Sequence[np.ndarray] = ()
) -> list[Timing]:
    """Times several things in turn, round after round: the timings of what `sample_in_turn` samples.

    With a judge, they are scaled to its reference kernel at its best.
    """
    found, judge = sample_in_turn(runs, effort, num_threads, derive), effort.judge
    return [timing_of([samples], None if judge is None else judge.least_s) for samples in found]


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
    plans = [_plan(run, effort.num_warm_up) for run in runs]
    rounds: list[list[_Turn]] = []
    looks_s: list[float] = []
    left_s = effort.seconds * len(runs)
    while len(rounds) < effort.max_turns and (left_s > 0 or len(rounds) < effort.min_turns):
        started = time.perf_counter()
        turns: list[_Turn] = []
        for run, (repeat, num_samples) in zip(runs, plans, strict=True):
            looks_s += [] if judge is None else [judge.look()]
            turns.append(_turn(run, repeat, num_samples, clock))
        rounds.append(turns)
        left_s -= time.perf_counter() - started
    reference_s, is_far = None, False
    if judge is not None:
        reference_s = float(np.quantile(looks_s, CALM))
        judge.least_s = min(judge.least_s, reference_s)
        is_far = reference_s > _MOST_OVER_BEST * judge.least_s
    alone = np.eye(len(runs))
    return [_joined(rounds, weights, clock, reference_s, is_far) for weights in (*alone, *derive)]


def timing_of(rounds: Sequence[Samples], reference_s: float | None = None) -> Timing:
    """What a thing takes when it is left alone, from all rounds; the interval is of the turns resampled.

    It is no narrower than rounds differ.

    Args:
        rounds: at least one; the disturbed ones count only where there are no others.
        reference_s: scales the times to this time of the reference kernel, such as the best of all rounds.
    """
    used = [each for each in rounds if not each.is_disturbed] or list(rounds)
    shares = np.array([len(each.turns_s) for each in used], dtype=float)
    shares /= shares.sum()
    generator = np.random.default_rng(0)
    resampled = np.array([_resampled(each, reference_s, generator) for each in used])
    values = np.array([_calm(np.array(each.turns_s), each) * _scale(each, reference_s) for each in used])
    calm = float(shares @ values)
    low, high = map(float, np.quantile(shares @ resampled, (0.05, 0.95)))
    if len(used) > 1:
        spread = _Z_90 * float(np.std(values, ddof=1)) / np.sqrt(len(used))
        low, high = min(low, calm - spread), max(high, calm + spread)
    return Timing(
        calm_s=calm,
        low_s=min(low, calm),
        high_s=max(high, calm),
        typical_s=float(np.median(np.concatenate([np.array(each.turns_s) @ each.weights for each in used]))),
        num_samples=sum(each.num_samples for each in used),
        num_rejected=sum(each.num_rejected for each in rounds),
        clock=used[0].clock,
    )


def _resampled(samples: Samples, reference_s: float | None, generator: np.random.Generator) -> np.ndarray:
    """What other draws of as many turns would have given, in seconds."""
    turns = np.array(samples.turns_s)
    drawn = turns[generator.integers(0, len(turns), (_RESAMPLES, len(turns)))]
    return _calm(drawn, samples) * _scale(samples, reference_s)


def _calm(turns: np.ndarray, samples: Samples) -> np.ndarray:
    """The combination of low deciles, over the last axis but one."""
    return np.quantile(turns, CALM, axis=-2) @ np.array(samples.weights)


def _scale(samples: Samples, reference_s: float | None) -> float:
    return 1.0 if reference_s is None or samples.reference_s is None else reference_s / samples.reference_s


def clock_for(num_threads: int, system: str = sys.platform) -> Clock:
    """The clock that work of so many threads is timed by, on this system or another."""
    return "thread_cpu" if num_threads == 1 and system.lower() == "linux" else "wall"


@dataclass(frozen=True, slots=True)
class _Turn:
    median_s: float
    num_clean: int
    num_rejected: int


def _plan(run: Callable[[], object], num_warm_up: int) -> tuple[int, int]:
    """Of a turn: how often to repeat the work within a sample, and how many samples to take."""
    once_s = max(_time_once(run, num_warm_up), 1e-9)
    repeat = max(1, round(_MIN_CHUNK_S / once_s))
    return repeat, int(np.clip(_TURN_S / (repeat * once_s), 1, _MOST_SAMPLES_PER_TURN))


def _turn(run: Callable[[], object], repeat: int, num_samples: int, clock: Clock) -> _Turn:
    for _ in range(max(1, repeat * num_samples // 2)):
        run()
    samples = [sample(run, repeat, clock) for _ in range(num_samples)]
    clean = [time_s for time_s, is_clean in samples if is_clean]
    times_s = clean or [time_s for time_s, _ in samples]
    return _Turn(float(np.median(times_s)), len(clean), num_samples - len(clean))


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


def _joined(
    rounds: Sequence[Sequence[_Turn]], weights: np.ndarray, clock: Clock, reference_s: float | None, is_far: bool
) -> Samples:
    """The samples of what the weights combine."""
    places = [index for index, weight in enumerate(weights) if weight]
    parts = [[turns[place] for place in places] for turns in rounds]
    clean = [turns for turns in parts if all(turn.num_clean for turn in turns)]
    is_disturbed = len(clean) < min(_LEAST_CLEAN, len(parts))
    kept = parts if is_disturbed else clean
    return Samples(
        turns_s=tuple(tuple(turn.median_s for turn in turns) for turns in kept),
        weights=tuple(map(float, weights[places])),
        reference_s=reference_s,
        num_samples=sum(min(turn.num_clean for turn in turns) for turns in kept),
        num_rejected=sum(max(turn.num_rejected for turn in turns) for turns in parts),
        clock=clock,
        is_disturbed=is_disturbed or is_far,
    )
