"""Energy counters: files as the systems show them, in a folder of ours, and work that draws a known power."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from blockwright.errors import InputError
from blockwright.profiler import energy
from blockwright.profiler.energy import EnergyEffort, Nvml, Rapl, find_counter, measure_power


class Clock:
    """A clock that only sleeping moves; threads of ours do not run by it."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(energy, "time", made)
    monkeypatch.setattr(
        energy,
        "threading",
        SimpleNamespace(Lock=threading.Lock, Thread=lambda **_: SimpleNamespace(start=lambda: None)),
    )
    return made


def _zone(root: Path, name: str, zone: str, micro_joules: int, wraps_at: int = 1000) -> Path:
    folder = root / "sys/class/powercap" / zone
    folder.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", micro_joules), ("max_energy_range_uj", wraps_at)):
        (folder / file).write_text(f"{text}\n")
    return folder


def test_packages_are_summed_and_cores_within_them_are_not(tmp_path: Path) -> None:
    zones = [_zone(tmp_path, f"package-{n}", f"intel-rapl:{n}", 100) for n in range(2)]
    _zone(tmp_path, "core", "intel-rapl:0:0", 100)
    _zone(tmp_path, "psys", "intel-rapl:2", 100)
    counter = find_counter(tmp_path)
    assert isinstance(counter, Rapl)
    for zone in zones:
        (zone / "energy_uj").write_text("150")
    assert counter.read_j() == pytest.approx(100e-6)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    zone = _zone(tmp_path, "package-0", "intel-rapl:0", 900)
    counter = Rapl([zone])
    (zone / "energy_uj").write_text("50")
    assert counter.read_j() == pytest.approx(150e-6)


def test_a_counter_that_may_not_be_read_says_how_to_allow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = _zone(tmp_path, "package-0", "intel-rapl:0", 900)
    really_read = Path.read_text

    def refuse(path: Path, *_: object) -> str:
        if path == zone / "energy_uj":
            raise PermissionError(path)
        return really_read(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match=r"chmod a\+r"):
        find_counter(tmp_path)


def test_a_jetsons_input_is_summed_up(tmp_path: Path, clock: Clock) -> None:
    sensor = tmp_path / "sys/class/hwmon/hwmon3"
    sensor.mkdir(parents=True)
    rails = (("in1", "curr1", "VDD_CPU", 5000, 10), ("in2", "curr2", "VDD_IN", 5000, 2000))
    for volt, ampere, label, millivolts, milliamperes in rails:
        (sensor / f"{volt}_label").write_text(f"{label}\n")
        (sensor / f"{volt}_input").write_text(f"{millivolts}\n")
        (sensor / f"{ampere}_input").write_text(f"{milliamperes}\n")
    counter = find_counter(tmp_path)
    assert counter is not None and counter.source == "ina"
    row = measure_power(lambda: clock.sleep(0.3), counter, EnergyEffort(window_s=5.0, cool_s=1.0, num_windows=2))
    assert row.value == pytest.approx(10.0)
    assert row.source == "the mean of 2 windows of 5 s, by the counter ina"
    (sensor / "curr2_input").write_text("4000")
    clock.sleep(2.0)
    before = counter.read_j()
    clock.sleep(1.0)
    assert counter.read_j() - before == pytest.approx(20.0)


def test_no_counter_is_none_and_not_zero(tmp_path: Path) -> None:
    assert find_counter(tmp_path) is None


def test_a_gpus_counter_is_preferred_and_in_joules(tmp_path: Path) -> None:
    _zone(tmp_path, "package-0", "intel-rapl:0", 0)
    counter = find_counter(tmp_path, nvml_mj=lambda: 2500)
    assert counter is not None
    assert (counter.source, counter.read_j()) == ("nvml", 2.5)


def test_a_counter_that_stands_still_is_refused() -> None:
    with pytest.raises(InputError, match="a counter that moves"):
        measure_power(lambda: None, Nvml(lambda: 7), EnergyEffort(window_s=0.01, cool_s=0.0))
