"""The reference kernel: how fast the machine is now, beside its best."""

from collections.abc import Callable

import pytest

from blockwright.profiler import reference
from blockwright.profiler.reference import Reference, make_reference


class _Machine:
    """A kernel that takes so many milliseconds at each look in turn, and a clock that only sleeping moves."""

    def __init__(self, *milliseconds: float) -> None:
        self.kernel = Reference(lambda: None, float("inf"), 0.0)
        self.slept_s = 0.0
        self._looks = [each / 1e3 for each in milliseconds]
        self._runs = 0

    def sample(self, *_: object) -> tuple[float, bool]:
        self._runs += 1
        return self._looks[(self._runs - 1) // reference._RUNS_PER_LOOK], self._runs % 3 != 0

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


@pytest.fixture
def make_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Machine]:
    def make(*milliseconds: float, patience_s: float = 0.0) -> _Machine:
        machine = _Machine(*milliseconds)
        machine.kernel.patience_s = patience_s
        monkeypatch.setattr(reference, "sample", machine.sample)
        monkeypatch.setattr(reference, "time", machine)
        return machine

    return make


def test_a_look_is_the_median_of_runs_that_were_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(4.0, True)] * 6 + [(9.0, False)] * 3)
    monkeypatch.setattr(reference, "sample", lambda *_: next(runs))
    assert Reference(lambda: None, float("inf"), 0.0).look() == 4.0


def test_all_runs_have_to_do_where_most_were_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(4.0, True)] * 2 + [(9.0, False)] * 7)
    monkeypatch.setattr(reference, "sample", lambda *_: next(runs))
    assert Reference(lambda: None, float("inf"), 0.0).look() == 9.0


def test_what_is_not_far_from_its_best_is_calm_and_a_better_best_makes_it_a_disturbance(
    make_machine: Callable[..., _Machine],
) -> None:
    kernel = make_machine(8, 4).kernel
    assert kernel.is_calm(kernel.look())
    kernel.look()
    assert kernel.least_s == 4e-3
    assert kernel.is_calm(4.4e-3) and not kernel.is_calm(8e-3)


def test_it_waits_until_the_machine_is_calm(make_machine: Callable[..., _Machine]) -> None:
    machine = make_machine(4, 8, 8, 4, patience_s=1.0)
    machine.kernel.look()
    machine.kernel.await_calm()
    assert machine.slept_s == pytest.approx(0.1)
    assert machine.kernel.patience_s == pytest.approx(0.9)


def test_patience_ends(make_machine: Callable[..., _Machine]) -> None:
    machine = make_machine(4, 8, 8, 8, 8, 8, patience_s=0.1)
    machine.kernel.look()
    machine.kernel.await_calm()
    machine.kernel.await_calm()
    assert machine.slept_s == pytest.approx(0.1)


def test_the_best_of_an_earlier_profile_is_the_measure() -> None:
    assert not Reference(lambda: None, 1e-3, 0.0).is_calm(4e-3)


def test_the_kernel_runs() -> None:
    assert 1e-6 < make_reference(patience_s=0.0).least_s < 1.0
