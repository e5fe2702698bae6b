"""Measuring round after round: what is kept, what fails, what is disturbed, when it ends."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from blockwright.compile.engine import SessionSettings
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Point
from blockwright.pipeline import measuring
from blockwright.pipeline.measuring import Limits, Measurements, measure_all
from blockwright.profiler import measure
from blockwright.profiler.bench import Bench
from blockwright.profiler.clock import Effort, Samples
from blockwright.profiler.measure import PartCase, TimedCase, WholesCase
from blockwright.spec import FP32, Attention, GatedFFN, Model

LIMITS = Limits(target=0.01, again_s=60.0, total_s=60.0)
Sampler = Callable[[str, int], Samples]


def _samples(*times_s: float, is_disturbed: bool = False) -> Samples:
    return Samples(
        turns_s=tuple((time_s,) for time_s in times_s),
        weights=(1.0,),
        reference_s=None,
        num_samples=len(times_s),
        num_rejected=0,
        clock="thread_cpu",
        is_disturbed=is_disturbed,
    )


@pytest.fixture
def cases(made_up_parent: Model) -> list[TimedCase]:
    session, point = SessionSettings(num_threads=1), Point(batch=1, new_tokens=1, slots=64)
    bench = Bench(backend="onnxruntime", weights=FP32, model=made_up_parent, session=session, effort=Effort())
    parts = [
        PartCase(bench=bench, variant=each, point=point) for each in (Attention(num_kv_heads=4), GatedFFN(width=128))
    ]
    return [*parts, WholesCase(bench=bench, models=(made_up_parent,), point=point)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sampler], list[str]]:
    """Replaces timing by a function of what is timed and of how often it was before."""

    def replace(sampler: Sampler) -> list[str]:
        called: list[str] = []

        def one(name: str) -> Samples:
            called.append(name)
            return sampler(name, called.count(name) - 1)

        def all_of(bench: Bench, variants: Sequence, point: Point) -> list[Samples]:
            return [one(type(variant).__name__) for variant in variants]

        monkeypatch.setattr(measure, "_SAMPLE_VARIANTS", {"onnxruntime": all_of})
        monkeypatch.setattr(measure, "_SAMPLE_MODELS", {"onnxruntime": lambda *_: [one("wholes")]})
        return called

    return replace


def test_what_is_sure_is_measured_once(tmp_path: Path, cases: list, calls: Callable) -> None:
    called = calls(lambda name, turn: _samples(1.0, 1.0, 1.0))
    measured = measure_all(cases, tmp_path, LIMITS)
    assert called == ["Attention", "GatedFFN", "wholes"]
    assert (measured.stopped_by, measured.precision, measured.failures) == ("precision", 0.0, {})


def test_what_is_unsure_is_measured_again_and_joined(tmp_path: Path, cases: list, calls: Callable) -> None:
    noisy = _samples(1.0, 1.0, 9.0)
    called = calls(lambda name, turn: noisy if name == "GatedFFN" and turn == 0 else _samples(*[1.0] * 200))
    measured = measure_all(cases, tmp_path, LIMITS)
    assert called[:3] == ["Attention", "GatedFFN", "wholes"] and set(called[3:]) == {"GatedFFN"}
    row = next(row for row in measured.rows(cases, None) if getattr(row, "variant", "") == "ffn-128")
    assert row.num_samples == 3 + 200 * (len(called) - 3)  # type: ignore[union-attr]


def test_it_ends_where_more_does_not_help(tmp_path: Path, cases: list, calls: Callable) -> None:
    calls(lambda name, turn: _samples(1.0 + 3.0**turn, 1.0 + 3.0**turn))
    assert measure_all(cases, tmp_path, LIMITS).stopped_by == "precision"  # one round that agrees with itself
    calls(lambda name, turn: _samples(0.1, 1.0, 1.9, 1.0 * (turn + 1)))
    (tmp_path / "other").mkdir()
    assert measure_all(cases, tmp_path / "other", LIMITS).stopped_by == "no_gain"


def test_it_ends_where_time_is_up(tmp_path: Path, cases: list, calls: Callable) -> None:
    calls(lambda name, turn: _samples(0.1, 1.0, 1.9))
    assert measure_all(cases, tmp_path, Limits(target=0.01, again_s=0.0, total_s=60.0)).stopped_by == "time"


def test_a_case_that_fails_is_told_and_the_others_are_measured(tmp_path: Path, cases: list, calls: Callable) -> None:
    def fail(name: str, turn: int) -> Samples:
        if name == "GatedFFN":
            raise MemoryError("too large")
        return _samples(1.0, 1.0)

    called = calls(fail)
    measured = measure_all(cases, tmp_path, LIMITS)
    assert called == ["Attention", "GatedFFN", "Attention", "GatedFFN", "wholes"]  # together, then one by one
    assert measured.failures == {cases[1].name: "MemoryError: too large"}
    assert len(measured.rows(cases, None)) == 2


def test_where_everything_fails_there_is_no_profile(tmp_path: Path, cases: list, calls: Callable) -> None:
    def fail(name: str, turn: int) -> Samples:
        raise MemoryError("too large")

    calls(fail)
    with pytest.raises(InputError, match="too large"):
        measure_all(cases, tmp_path, LIMITS)


def test_a_later_run_measures_only_what_is_missing(tmp_path: Path, cases: list, calls: Callable) -> None:
    calls(lambda name, turn: _samples(1.0, 1.0))
    before = measure_all(cases, tmp_path, LIMITS)
    (tmp_path / "case-0001-round-00.json").unlink()
    called = calls(lambda name, turn: _samples(1.0, 1.0))
    after = measure_all(cases, tmp_path, LIMITS)
    assert called == ["GatedFFN"]
    assert after.rows(cases, None) == before.rows(cases, None)


def test_a_drop_of_the_clock_is_marked_and_measured_again(
    tmp_path: Path, cases: list, calls: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = iter([3e9, 2e9, 3e9, 3e9])
    monkeypatch.setattr(measuring, "clock_hz", lambda: next(clocks))
    called = calls(lambda name, turn: _samples(9.0, 9.0) if (name, turn) == ("GatedFFN", 0) else _samples(1.0, 1.0))
    measured = measure_all(cases, tmp_path, LIMITS)
    assert called == ["Attention", "GatedFFN", "wholes", "GatedFFN"]
    assert measured.disturbed == set()
    assert {row.time_s for row in measured.rows(cases, None) if not hasattr(row, "layers")} == {1.0}  # type: ignore[union-attr]


def test_what_is_disturbed_every_time_is_kept_and_counted(tmp_path: Path, cases: list, calls: Callable) -> None:
    called = calls(lambda name, turn: _samples(1.0, 1.0, is_disturbed=name == "wholes"))
    measured: Measurements = measure_all(cases, tmp_path, LIMITS)
    assert called.count("wholes") == 3
    assert measured.disturbed == {cases[2].name}
