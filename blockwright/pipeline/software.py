"""Versions of what decides how fast engines run here."""

from blockwright.compile.cpu_library import SWITCH, operators_in_use, why_missing
from blockwright.hw_profiles.device import OPERATORS, RUNTIMES_OWN, installed_software
from blockwright.pipeline.console import say


def engine_software() -> dict[str, str]:
    """Installed packages, and whose operators an engine's layers run on."""
    return installed_software() | {OPERATORS: operators_in_use()}


def say_what_is_missing() -> None:
    """Says why engines run slower here than they could, where they do."""
    if (why := why_missing()) is not None:
        say(f"ONNX Runtime's CPU operators run, for our faster ones cannot: {why}. {SWITCH}={RUNTIMES_OWN} hides this.")
