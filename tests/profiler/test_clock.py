"""Timing: what a thing takes when left alone, with its interval; slopes by combination, interruptions counted."""

import time
from itertools import groupby

import numpy as np
import pytest

from blockwright.profiler import clock
from blockwright.profiler.clock import Effort, Samples, sample_in_turn, time_in_turn, timing_of

QUICK = Effort(seconds=0.0, min_turns=10, max_turns=20)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of three samples, whatever is timed."""
    monkeypatch.setattr(clock, "_MOST_SAMPLES_PER_TURN", 3)


def _busy(amount: int) -> None:
    for _ in range(amount):
        pass


def test_times_lie_within_their_intervals_and_below_what_is_typical() -> None:
    for timing in time_in_turn([lambda: _busy(1000), lambda: _busy(5000)], QUICK):
        assert 0 < timing.low_s <= timing.calm_s <= timing.high_s
        assert timing.calm_s <= timing.typical_s
        assert timing.num_samples + timing.num_rejected >= 3 * QUICK.min_turns


def test_each_thing_is_run_in_its_turn() -> None:
    calls: list[str] = []
    time_in_turn([lambda: calls.append("a"), lambda: calls.append("b")], Effort(seconds=0.0, min_turns=2))
    turns = "".join(name for name, _ in groupby(calls))
    assert turns == "ab" + "ab" * 2  # warming up, then two rounds of three samples


def test_the_slope_between_one_and_five_times_the_work_is_the_work() -> None:
    slope = np.array([-1.0, 1.0]) / 4
    effort = Effort(seconds=0.2, min_turns=10)
    once, _, derived = time_in_turn([lambda: _busy(20_000), lambda: _busy(100_000)], effort, derive=[slope])
    assert 0.5 < derived.calm_s / once.calm_s < 2


def test_short_work_is_repeated_within_a_sample() -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    timing = time_in_turn([step], Effort(seconds=0.0, min_turns=1))[0]
    assert count > 100 * timing.num_samples
    assert timing.calm_s < 1e-4


def test_waiting_does_not_count_as_work_of_one_thread() -> None:
    if clock.sys.platform != "linux":
        pytest.skip("only Linux tells how often a thread was interrupted")
    timing = time_in_turn([lambda: time.sleep(0.002)], Effort(seconds=0.0, min_turns=2))[0]
    assert timing.clock == "thread_cpu"
    assert timing.calm_s < 0.001
    assert timing.num_rejected >= 6  # wall time is far beyond CPU time


def test_waiting_counts_on_the_wall_clock_of_several_threads() -> None:
    timing = time_in_turn([lambda: time.sleep(0.002)], Effort(seconds=0.0, min_turns=2), num_threads=2)[0]
    assert timing.clock == "wall"
    assert timing.calm_s >= 0.002
    assert timing.num_rejected == 0


def test_interrupted_samples_are_thrown_away_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(1.0, True)] * 3 + [(9.0, False)] * 3 + [(1.0, True)] * 6)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    timing = time_in_turn([lambda: None], Effort(seconds=0.0, min_turns=4))[0]
    assert (timing.calm_s, timing.high_s) == (1.0, 1.0)
    assert (timing.num_samples, timing.num_rejected) == (9, 3)


def test_a_combination_counts_only_rounds_in_which_all_its_parts_were_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [(1.0, True)] * 12
    second = [(3.0, True)] * 9 + [(50.0, False)] * 3
    turns = [turn for i in range(0, 12, 3) for turn in (first[i : i + 3], second[i : i + 3])]
    samples = iter(sample for turn in turns for sample in turn)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    effort = Effort(seconds=0.0, min_turns=4)
    derived = time_in_turn([lambda: None, lambda: None], effort, derive=[np.array([-1.0, 1.0])])[-1]
    assert (derived.low_s, derived.calm_s, derived.high_s) == (2.0, 2.0, 2.0)
    assert (derived.num_samples, derived.num_rejected) == (9, 3)


def test_all_samples_have_to_do_where_nearly_none_was_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(1.0, True)] * 3 + [(2.0, False)] * 6)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    timing = time_in_turn([lambda: None], Effort(seconds=0.0, min_turns=3))[0]
    assert timing.typical_s == 2.0
    assert (timing.num_samples, timing.num_rejected) == (3, 6)


class _Paces:
    """A judge that sees the reference kernel take these times, in the order of its looks."""

    def __init__(self, *looks_s: float, least_s: float = 1.0) -> None:
        self.least_s = least_s
        self._looks = iter(looks_s)

    def look(self) -> float:
        return next(self._looks)


def _turns(monkeypatch: pytest.MonkeyPatch, *turns_s: float) -> None:
    """Has every sample of a turn take so long."""
    samples = iter([(time_s, True) for time_s in turns_s for _ in range(3)])
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))


def test_a_thing_takes_what_it_takes_in_the_tenth_of_turns_that_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    turns_s = [float(each) for each in range(10, 21)]
    _turns(monkeypatch, *reversed(turns_s))
    timing = time_in_turn([lambda: None], Effort(seconds=0.0, min_turns=11))[0]
    assert (timing.calm_s, timing.typical_s) == (11.0, 15.0)
    assert 10.0 <= timing.low_s <= 11.0 <= timing.high_s <= 15.0


def test_times_count_in_units_of_the_reference_in_the_same_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    _turns(monkeypatch, 5.5, 5.5)
    judge = _Paces(1.1, 1.1)
    (samples,) = sample_in_turn([lambda: None], Effort(seconds=0.0, min_turns=2, judge=judge))
    assert samples.reference_s == pytest.approx(1.1) and judge.least_s == 1.0
    timing = timing_of([samples], reference_s=1.0)
    assert (timing.calm_s, timing.low_s, timing.high_s) == pytest.approx((5.0, 5.0, 5.0))
    assert timing.typical_s == pytest.approx(5.5)


def test_things_timed_at_once_are_scaled_to_the_reference_at_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    _turns(monkeypatch, 5.5, 5.5)
    effort = Effort(seconds=0.0, min_turns=2, judge=_Paces(1.1, 1.1, least_s=1.0))
    (timing,) = time_in_turn([lambda: None], effort)
    assert (timing.calm_s, timing.typical_s) == pytest.approx((5.0, 5.5))


def test_a_calmer_stretch_makes_the_best_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    _turns(monkeypatch, 5.0, 5.0)
    judge = _Paces(0.8, 0.9, least_s=1.0)
    sample_in_turn([lambda: None], Effort(seconds=0.0, min_turns=2, judge=judge))
    assert judge.least_s == pytest.approx(0.81)


def test_a_stretch_in_which_the_reference_was_far_from_its_best_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    for look_s, expected in ((1.2, False), (1.3, True)):
        _turns(monkeypatch, *[5.0] * 4)
        effort = Effort(seconds=0.0, min_turns=4, judge=_Paces(*[look_s] * 4))
        assert sample_in_turn([lambda: None], effort)[0].is_disturbed == expected


def _samples(*times_s: float, reference_s: float | None = None, is_disturbed: bool = False) -> Samples:
    return Samples(
        turns_s=tuple((time_s,) for time_s in times_s),
        weights=(1.0,),
        reference_s=reference_s,
        num_samples=len(times_s),
        num_rejected=1,
        clock="thread_cpu",
        is_disturbed=is_disturbed,
    )


def test_rounds_join_at_one_time_of_the_reference() -> None:
    timing = timing_of([_samples(2.0, 2.0, reference_s=1.0), _samples(1.0, 1.0, reference_s=0.5)], reference_s=0.5)
    assert (timing.calm_s, timing.low_s, timing.high_s) == (1.0, 1.0, 1.0)
    assert (timing.num_samples, timing.num_rejected) == (4, 2)


def test_a_longer_round_counts_more() -> None:
    assert timing_of([_samples(*[1.0] * 30), _samples(*[2.0] * 10)]).calm_s == pytest.approx(1.25)


def test_rounds_that_differ_widen_the_interval_beyond_that_of_their_turns() -> None:
    apart = timing_of([_samples(*[1.0] * 99), _samples(*[1.2] * 99)])
    assert apart.low_s < 1.0 and apart.high_s > 1.2
    alike = timing_of([_samples(*[1.0] * 99), _samples(*[1.0] * 99)])
    assert (alike.low_s, alike.high_s) == pytest.approx((1.0, 1.0))


def test_the_interval_covers_what_the_low_decile_is_of_many_draws() -> None:
    """Nine in ten intervals of 40 turns hold the decile of the distribution that the turns are drawn from."""
    generator = np.random.default_rng(0)
    true_s = float(np.quantile(1 + generator.exponential(0.2, 10**6), 0.1))
    timings = [timing_of([_samples(*(1 + generator.exponential(0.2, 40)))]) for _ in range(300)]
    covered = np.mean([timing.low_s <= true_s <= timing.high_s for timing in timings])
    assert 0.8 <= covered <= 0.98


def test_a_disturbed_round_counts_only_where_there_is_no_other() -> None:
    bad = _samples(9.0, 9.0, is_disturbed=True)
    assert timing_of([bad, _samples(1.0, 1.0)]).high_s == 1.0
    assert timing_of([bad]).calm_s == 9.0


def test_what_was_hardly_ever_clean_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(1.0, True)] * 6 + [(2.0, False)] * 9)
    monkeypatch.setattr(clock, "sample", lambda *_: next(samples))
    assert sample_in_turn([lambda: None], Effort(seconds=0.0, min_turns=5))[0].is_disturbed
