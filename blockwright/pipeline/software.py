"""Versions of what decides how fast engines run here."""

from blockwright.compile.cpu_library import operators_in_use
from blockwright.hw_profiles.device import OPERATORS, installed_software


def engine_software() -> dict[str, str]:
    """Installed packages, and whose operators an engine's layers run on."""
    return installed_software() | {OPERATORS: operators_in_use()}
