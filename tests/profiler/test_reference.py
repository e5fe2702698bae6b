"""The reference kernel: how fast the machine is now, beside its best."""

import pytest

from blockwright.profiler import reference
from blockwright.profiler.reference import Reference, make_reference


def test_a_look_is_the_median_of_runs_that_were_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(4.0, True)] * 3 + [(9.0, False)] * 2)
    monkeypatch.setattr(reference, "sample", lambda *_: next(runs))
    assert Reference(lambda: None, float("inf")).look() == 4.0


def test_all_runs_have_to_do_where_most_were_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(4.0, True)] * 2 + [(9.0, False)] * 3)
    monkeypatch.setattr(reference, "sample", lambda *_: next(runs))
    assert Reference(lambda: None, float("inf")).look() == 9.0


def test_its_best_is_the_low_decile_of_many_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(1, reference._LOOKS_AT_FIRST + 1))
    monkeypatch.setattr(Reference, "look", lambda self: float(next(looks)))
    assert make_reference().least_s == pytest.approx(0.1 * (reference._LOOKS_AT_FIRST - 1) + 1)


def test_the_best_of_an_earlier_profile_is_the_measure() -> None:
    assert make_reference(least_s=1e-9).least_s == 1e-9


def test_the_kernel_runs() -> None:
    assert 1e-6 < make_reference().least_s < 1.0
