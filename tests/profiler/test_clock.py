"""Timing: medians within their intervals, slopes by combination, interruptions counted."""

import time

import numpy as np
import pytest

from blockwright.profiler import clock
from blockwright.profiler.clock import Effort, Samples, sample_in_turn, time_in_turn, timing_of

QUICK = Effort(seconds=0.0, min_samples=30, max_samples=60)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of three samples, whatever is timed."""
    monkeypatch.setattr(clock, "_MOST_SAMPLES_PER_TURN", 3)


def _busy(amount: int) -> None:
    for _ in range(amount):
        pass


def test_medians_lie_within_their_intervals() -> None:
    for timing in time_in_turn([lambda: _busy(1000), lambda: _busy(5000)], QUICK):
        assert 0 < timing.low_s <= timing.median_s <= timing.high_s
        assert timing.num_samples + timing.num_rejected >= QUICK.min_samples


def test_each_thing_is_run_in_its_turn() -> None:
    calls: list[str] = []
    time_in_turn([lambda: calls.append("a"), lambda: calls.append("b")], Effort(seconds=0.0, min_samples=6))
    turns = "".join(calls).replace("aa", "a").replace("aa", "a")
    while "aa" in turns or "bb" in turns:
        turns = turns.replace("aa", "a").replace("bb", "b")
    assert turns == "ab" + "ab" * 2  # warming up, then two rounds of three samples


def test_the_slope_between_one_and_five_times_the_work_is_the_work() -> None:
    slope = np.array([-1.0, 1.0]) / 4
    effort = Effort(seconds=0.2, min_samples=30)
    once, _, derived = time_in_turn([lambda: _busy(20_000), lambda: _busy(100_000)], effort, derive=[slope])
    assert 0.5 < derived.median_s / once.median_s < 2


def test_short_work_is_repeated_within_a_sample() -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    timing = time_in_turn([step], Effort(seconds=0.0, min_samples=3))[0]
    assert count > 100 * timing.num_samples
    assert timing.median_s < 1e-4


def test_waiting_does_not_count_as_work_of_one_thread() -> None:
    if clock.sys.platform != "linux":
        pytest.skip("only Linux tells how often a thread was interrupted")
    timing = time_in_turn([lambda: time.sleep(0.002)], Effort(seconds=0.0, min_samples=6))[0]
    assert timing.clock == "thread_cpu"
    assert timing.median_s < 0.001
    assert timing.num_rejected >= 6  # wall time is far beyond CPU time


def test_waiting_counts_on_the_wall_clock_of_several_threads() -> None:
    timing = time_in_turn([lambda: time.sleep(0.002)], Effort(seconds=0.0, min_samples=6), num_threads=2)[0]
    assert timing.clock == "wall"
    assert timing.median_s >= 0.002
    assert timing.num_rejected == 0


def test_interrupted_samples_are_thrown_away_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(1.0, True)] * 3 + [(9.0, False)] * 3 + [(1.0, True)] * 3)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    timing = time_in_turn([lambda: None], Effort(seconds=0.0, min_samples=9))[0]
    assert (timing.median_s, timing.high_s) == (1.0, 1.0)
    assert (timing.num_samples, timing.num_rejected) == (6, 3)


def test_a_combination_counts_only_rounds_in_which_all_its_parts_were_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [(1.0, True)] * 9
    second = [(3.0, True)] * 6 + [(50.0, False)] * 3
    turns = [turn for i in range(0, 9, 3) for turn in (first[i : i + 3], second[i : i + 3])]
    samples = iter(sample for turn in turns for sample in turn)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    effort = Effort(seconds=0.0, min_samples=9)
    derived = time_in_turn([lambda: None, lambda: None], effort, derive=[np.array([-1.0, 1.0])])[-1]
    assert (derived.low_s, derived.median_s, derived.high_s) == (2.0, 2.0, 2.0)
    assert (derived.num_samples, derived.num_rejected) == (6, 3)


def test_all_samples_have_to_do_where_nearly_none_was_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(1.0, True)] * 3 + [(2.0, False)] * 6)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    timing = time_in_turn([lambda: None], Effort(seconds=0.0, min_samples=9))[0]
    assert timing.median_s == 2.0
    assert (timing.num_samples, timing.num_rejected) == (9, 6)


class _Paces:
    """A judge that sees the reference kernel take these times, in the order of its looks."""

    def __init__(self, *looks_s: float) -> None:
        self.least_s = 1.0
        self._looks = iter(looks_s)

    def look(self) -> float:
        return next(self._looks)

    def is_calm(self, look_s: float) -> bool:
        return look_s <= 1.2 * self.least_s

    def await_calm(self) -> None:
        pass


def test_times_count_in_units_of_the_reference_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(5.0, True)] * 3 + [(5.5, True)] * 3)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    effort = Effort(seconds=0.0, min_samples=6, judge=_Paces(1.0, 1.0, 1.1, 1.1))
    timing = time_in_turn([lambda: None], effort)[0]
    assert (timing.median_s, timing.low_s, timing.high_s) == pytest.approx((5.0, 5.0, 5.0))
    assert timing.num_rejected == 0


def test_turns_in_which_the_reference_changed_or_was_far_from_its_best_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = iter([(5.0, True)] * 3 + [(9.0, True)] * 6 + [(5.0, True)] * 3)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    effort = Effort(seconds=0.0, min_samples=12, judge=_Paces(1.0, 1.0, 1.0, 1.1, 1.4, 1.4, 1.0, 1.0))
    timing = time_in_turn([lambda: None], effort)[0]
    assert (timing.median_s, timing.num_samples, timing.num_rejected) == (5.0, 6, 6)


def _samples(*times_s: float, reference_s: float | None = None, is_disturbed: bool = False) -> Samples:
    return Samples(
        times_s=times_s, num_rejected=1, clock="thread_cpu", reference_s=reference_s, is_disturbed=is_disturbed
    )


def test_rounds_join_at_one_time_of_the_reference() -> None:
    timing = timing_of([_samples(2.0, 2.0, reference_s=1.0), _samples(1.0, 1.0, reference_s=0.5)], reference_s=0.5)
    assert (timing.median_s, timing.low_s, timing.high_s) == (1.0, 1.0, 1.0)
    assert (timing.num_samples, timing.num_rejected) == (4, 2)


def test_rounds_that_differ_widen_the_interval_beyond_that_of_their_samples() -> None:
    apart = timing_of([_samples(*[1.0] * 99), _samples(*[1.2] * 99)])
    assert apart.low_s < 1.0 and apart.high_s > 1.2
    alike = timing_of([_samples(*[1.0] * 99), _samples(*[1.0] * 99)])
    assert (alike.low_s, alike.high_s) == (1.0, 1.0)


def test_a_disturbed_round_counts_only_where_there_is_no_other() -> None:
    bad = _samples(9.0, 9.0, is_disturbed=True)
    assert timing_of([bad, _samples(1.0, 1.0)]).high_s == 1.0
    assert timing_of([bad]).median_s == 9.0


def test_what_was_hardly_ever_clean_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(1.0, True)] * 4 + [(2.0, False)] * 5)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    assert sample_in_turn([lambda: None], Effort(seconds=0.0, min_samples=9))[0].is_disturbed
