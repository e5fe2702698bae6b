"""Power in the ceilings: measured where a counter tells, told where it may not be read, absent where there is none."""

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.pipeline import power
from blockwright.pipeline.power import with_power
from blockwright.profiler import energy
from blockwright.profiler.energy import EnergyEffort

QUICK = EnergyEffort(window_s=0.15, cool_s=0.0, num_windows=1)


class _Meter:
    """10 W at rest, and 5 J more for each piece of work; the clock too, which only sleeping moves."""

    source = "rapl"

    def __init__(self) -> None:
        self.worked, self.now_s = 0, 0.0

    def read_j(self) -> float:
        return 10 * self.now_s + 5 * self.worked

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def work(self) -> None:
        self.worked += 1
        self.sleep(0.05)


def test_idle_and_busy_power_are_measured_where_there_is_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = _Meter()
    for module in (power, energy):
        monkeypatch.setattr(module, "time", meter)
    monkeypatch.setattr(power, "find_counter", lambda: meter)
    ceilings = with_power(read_profile(shipped_profiles()[0]).ceilings, meter.work, QUICK)
    assert ceilings.idle_w and ceilings.idle_w.value == pytest.approx(10)
    assert ceilings.busy_w and ceilings.busy_w.value == pytest.approx(110)


def test_without_a_counter_nothing_is_run_and_power_stays_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "find_counter", lambda: None)
    meter, before = _Meter(), read_profile(shipped_profiles()[0]).ceilings
    assert with_power(before, meter.work, QUICK) == before
    assert meter.worked == 0


def test_a_counter_that_may_not_be_read_is_told_and_measuring_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise InputError("energy counter", got="no permission", expected="one", remedy="Run as root.")

    monkeypatch.setattr(power, "find_counter", refuse)
    before = read_profile(shipped_profiles()[0]).ceilings
    assert with_power(before, lambda: None, QUICK) == before
    assert "no permission" in capsys.readouterr().err
