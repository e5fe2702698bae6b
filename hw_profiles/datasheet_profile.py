"""Profiles of devices that nobody has measured: a datasheet in a profile's form, so that all that takes one takes both.

They are made when asked for: what would lie beside the table as files could only differ from it.
"""

from blockwright.hw_profiles.conditions import Conditions
from blockwright.hw_profiles.datasheet_figures import Datasheet, datasheet, datasheet_ceilings
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.profile import Profile
from blockwright.hw_profiles.provenance import Coverage

_READ = "2026-11-21T00:00:00+00:00"
"""When the documents were read that `datasheet_table` quotes."""


def datasheet_profile(name: str) -> Profile:
    """What the documents say of a device; nothing in it is measured.

    Raises:
        InputError: nothing is known of it.
    """
    sheet = datasheet(name)
    device = _device_of(sheet)
    return Profile(
        schema_version=2,
        name=name,
        device=device,
        conditions=Conditions(power_limit_w=sheet.busy_w.value),
        software={},
        num_threads=device.num_cores or 1,
        created=_READ,
        model=None,
        ceilings=datasheet_ceilings(name),
        method=None,
        coverage=Coverage(status="complete", asked=0, done=0, failed=0, started=None, ended=_READ, wall_s=None),
    )


def is_datasheet(profile: Profile) -> bool:
    """Whether a profile is made of documents alone."""
    return profile.method is None


def _device_of(sheet: Datasheet) -> Device:
    """A GPU tells its compute capability as a compiler writes it, ``sm_90``, and no cores."""
    capability = sheet.compute_capability
    return Device(
        vendor=sheet.vendor,
        model=sheet.name,
        architecture=sheet.architecture,
        num_cores=None if capability or sheet.vendor == "Apple" else round(sheet.num_units.value),
        memory_bytes=round(sheet.memory_bytes.value),
        features=() if capability is None else ("sm_" + capability.replace(".", ""),),
        power_mode=f"{sheet.busy_w.value:g}W",
    )
