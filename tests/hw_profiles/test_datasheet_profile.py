"""Profiles that are made of datasheets."""

import json
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.datasheet_figures import datasheet, datasheet_ceilings, known_devices
from blockwright.hw_profiles.datasheet_profile import datasheet_profile, is_datasheet
from blockwright.hw_profiles.folder import measured_profiles, read_profile, shipped_profiles, write_profile


@pytest.mark.parametrize("name", known_devices())
def test_a_known_device_is_read_by_its_name(name: str) -> None:
    profile, sheet = read_profile(name), datasheet(name)
    assert profile.name == profile.device.model == name
    assert profile.device.vendor == sheet.vendor
    assert profile.device.memory_bytes == round(sheet.memory_bytes.value)
    assert profile.ceilings == datasheet_ceilings(name)
    figures = [profile.ceilings.read_bytes_per_s, profile.ceilings.launch_s, *profile.ceilings.flop_per_s.values()]
    assert {figure.origin for figure in figures} == {"modelled"}


@pytest.mark.parametrize("name", known_devices())
def test_nothing_in_it_is_measured(name: str) -> None:
    profile = read_profile(name)
    assert is_datasheet(profile) and profile.method is None and profile.model is None
    assert not any((profile.times, profile.wholes, profile.memory, profile.operators, profile.accuracy))
    assert (profile.coverage.asked, profile.coverage.done, profile.coverage.failed) == (0, 0, 0)


def test_a_measured_profile_is_no_datasheet() -> None:
    assert not any(is_datasheet(read_profile(name)) for name in measured_profiles())


def test_those_of_datasheets_ship_after_the_measured_ones() -> None:
    assert shipped_profiles() == [*measured_profiles(), *known_devices()]
    assert len(known_devices()) == 17 and not set(measured_profiles()) & set(known_devices())


def test_cores_are_told_of_processors_and_the_capability_of_gpus() -> None:
    nano, pi, apple = (read_profile(name).device for name in ("jetson_orin_nano", "raspberry_pi_5", "apple_m2"))
    assert (nano.num_cores, nano.features) == (None, ("sm_87",))
    assert (pi.num_cores, pi.features) == (4, ())
    assert (apple.num_cores, apple.features) == (None, ())
    assert read_profile("b200_sxm").device.features == ("sm_100",)


def test_written_to_a_folder_it_is_read_again_as_it_was(tmp_path: Path) -> None:
    profile = read_profile("l4")
    write_profile(profile, tmp_path / "l4")
    assert read_profile(tmp_path / "l4") == profile
    assert json.loads((tmp_path / "l4" / "profile.json").read_text())["method"] is None


def test_a_folder_of_the_same_name_goes_before_the_datasheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile(read_profile("l4"), tmp_path / "h100_sxm")
    monkeypatch.chdir(tmp_path)
    assert read_profile("h100_sxm").name == "l4"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="a100_sxm"):
        datasheet_profile("a100")
