"""The reference kernel: a calm machine is one as fast as it ever was, and only what was measured there counts."""

from collections.abc import Iterator

import pytest

from blockwright.profiler import clock, reference
from blockwright.profiler.clock import Effort, time_in_turn
from blockwright.profiler.reference import Reference, make_reference


class _Time:
    """A clock that only sleeping moves: what really sleeps takes longer than it was told on a busy machine."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def perf_counter(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


@pytest.fixture(autouse=True)
def time(monkeypatch: pytest.MonkeyPatch) -> _Time:
    """The clock that the kernel looks at; looks that find no calm take two runs."""
    clock = _Time()
    monkeypatch.setattr(reference, "time", clock)
    monkeypatch.setattr(reference, "_RUNS_PER_LOOK", 2)
    return clock


def _reference(time: _Time, milliseconds: list[int], patience_s: float = 0.0) -> Reference:
    """Takes so long at each run."""
    runs: Iterator[int] = iter(milliseconds)
    return Reference(lambda: time.sleep(next(runs) / 1e3), float("inf"), patience_s)


def test_what_is_as_fast_as_ever_is_calm_and_what_is_slower_is_not(time: _Time) -> None:
    kernel = _reference(time, [4, 4, 8, 8, 4])
    assert [kernel.is_calm() for _ in range(4)] == [True, True, False, True]


def test_a_core_that_has_slept_is_given_time_to_come_to_speed(time: _Time) -> None:
    kernel = _reference(time, [4, 8, 4])
    assert [kernel.is_calm() for _ in range(2)] == [True, True]


def test_a_faster_run_makes_earlier_speed_a_disturbance(time: _Time) -> None:
    kernel = _reference(time, [8, 4, 8, 8])
    assert [kernel.is_calm() for _ in range(3)] == [True, True, False]


def test_it_waits_until_the_machine_is_calm(time: _Time) -> None:
    kernel = _reference(time, [4, 8, 8, 8, 8, 4], patience_s=1.0)
    kernel.is_calm()
    assert kernel.await_calm()
    assert kernel.patience_s == pytest.approx(0.9)


def test_patience_ends(time: _Time) -> None:
    kernel = _reference(time, [4] + [8] * 8, patience_s=0.1)
    kernel.is_calm()
    assert not kernel.await_calm()
    assert not kernel.await_calm()


def test_the_best_of_an_earlier_profile_is_the_measure(time: _Time) -> None:
    assert not Reference(lambda: time.sleep(4e-3), 1e-3, 0.0).is_calm()


def test_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1e-6 < make_reference(patience_s=0.0).least_s < 1.0


class _Verdicts:
    """Says of each round in turn whether the machine was calm after it."""

    def __init__(self, *verdicts: bool) -> None:
        self._verdicts = iter(verdicts)

    def await_calm(self) -> bool:
        return True

    def is_calm(self) -> bool:
        return next(self._verdicts)


def test_rounds_of_a_disturbed_machine_are_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_MOST_SAMPLES_PER_TURN", 3)
    samples = iter([(1.0, True)] * 3 + [(2.0, True)] * 3 + [(1.0, True)] * 3)
    monkeypatch.setattr(clock, "_sample", lambda *_: next(samples))
    effort = Effort(seconds=0.0, min_samples=9, judge=_Verdicts(True, False, True))
    timing = time_in_turn([lambda: None], effort)[0]
    assert (timing.median_s, timing.high_s, timing.num_samples, timing.num_rejected) == (1.0, 1.0, 6, 3)
