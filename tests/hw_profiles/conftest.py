"""A profile and its folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.folder import read_profile, shipped_profiles, write_profile
from blockwright.hw_profiles.profile import Profile
from profile_tables import ACCURACY, MATMUL, MEMORY, OPERATORS, PART, WHOLE


@pytest.fixture(scope="module")
def profile() -> Profile:
    """A profile that has everything."""
    shipped = read_profile(shipped_profiles()[0])
    power = Figure(value=60.0, low=55.0, high=70.0, origin="measured", source="a test")
    ceilings = replace(shipped.ceilings, busy_w=power)
    return replace(
        shipped,
        ceilings=ceilings,
        times=shipped.times[: WHOLE - PART],
        wholes=shipped.wholes[: MEMORY - WHOLE],
        memory=shipped.memory[: MATMUL - MEMORY],
        operators=OPERATORS,
        accuracy=(ACCURACY,),
    )


@pytest.fixture
def good(profile: Profile, tmp_path: Path) -> Path:
    write_profile(profile, tmp_path / "good")
    return tmp_path / "good"
