"""Whether a file's device is the one that it is read in for, by name: NVIDIA H100 80GB HBM3 is an ``h100_sxm``."""

import re

from blockwright.errors import InputError
from blockwright.hw_profiles.device import Device

_NEUTRAL = {
    *("nvidia", "geforce", "nvgpu", "amd", "intel", "apple", "arm", "gpu", "cpu", "processor", "graphics", "core"),
    *("generation", "tensor", "with", "model", "rev"),
}
"""Words that tell no chip from another."""
_ASIDE = re.compile(r"\(.*?\)|@.*|\b\d+-core\b|\b\d+\s?gb\b|\bsxm\d?\b|\bhbm\w*")
"""Clocks, counts and memory. A form is told by its absence too: NVIDIA names the PCIe card so, and the others not."""


def check_device(told: str | None, device: Device, place: str) -> None:
    """Refuses times of another device.

    Args:
        told: the device in the file's words, several with commas between; None or no chip's name says nothing.
        device: the profile's.
        place: the file's name, for messages.

    Raises:
        InputError: the file names other devices only.
    """
    names = [name for name in (told or "").split(", ") if _words(name)]
    known = [_words(name) for name in (device.model, device.board, device.architecture) if name]
    if names and not any(_is_same(_words(name), own) for name in names for own in known):
        raise InputError(
            f"{place}: device",
            got=", ".join(names),
            expected=f"{device.board or device.model}, the device of --into",
            remedy="Name the profile of the file's device with --into: one that ships, or one that was measured there.",
        )


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", _ASIDE.sub(" ", name.lower().replace("_", " ")))) - _NEUTRAL


def _is_same(told: frozenset[str], own: frozenset[str]) -> bool:
    """A Jetson's GPU goes by its chip's name alone."""
    return told == own or ("jetson" in own and told <= own)
