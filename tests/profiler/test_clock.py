"""Timing: medians within their intervals, slopes by combination, interruptions counted."""

import time

import numpy as np
import pytest

from blockwright.profiler import clock
from blockwright.profiler.clock import Effort, time_in_turn

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
    monkeypatch.setattr(clock, "_sample", lambda *_: next(samples))
    timing = time_in_turn([lambda: None], Effort(seconds=0.0, min_samples=9))[0]
    assert (timing.median_s, timing.high_s) == (1.0, 1.0)
    assert (timing.num_samples, timing.num_rejected) == (6, 3)


def test_a_combination_counts_only_rounds_in_which_all_its_parts_were_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [(1.0, True)] * 9
    second = [(3.0, True)] * 6 + [(50.0, False)] * 3
    turns = [turn for i in range(0, 9, 3) for turn in (first[i : i + 3], second[i : i + 3])]
    samples = iter(sample for turn in turns for sample in turn)
    monkeypatch.setattr(clock, "_sample", lambda *_: next(samples))
    effort = Effort(seconds=0.0, min_samples=9)
    derived = time_in_turn([lambda: None, lambda: None], effort, derive=[np.array([-1.0, 1.0])])[-1]
    assert (derived.low_s, derived.median_s, derived.high_s) == (2.0, 2.0, 2.0)
    assert (derived.num_samples, derived.num_rejected) == (6, 3)


def test_all_samples_have_to_do_where_nearly_none_was_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(1.0, True)] * 3 + [(2.0, False)] * 6)
    monkeypatch.setattr(clock, "_sample", lambda *_: next(samples))
    timing = time_in_turn([lambda: None], Effort(seconds=0.0, min_samples=9))[0]
    assert timing.median_s == 2.0
    assert (timing.num_samples, timing.num_rejected) == (9, 6)
