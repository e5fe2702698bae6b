"""Quantities as text: read with their unit, written for people. Inside, everything is in SI base units."""

import re

from blockwright.errors import InputError

_FACTORS = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "bytes": {
        "B": 1.0,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "TB": 1e12,
        "KiB": 2.0**10,
        "MiB": 2.0**20,
        "GiB": 2.0**30,
        "TiB": 2.0**40,
    },
    "tokens/s": {"tok/s": 1.0, "ktok/s": 1e3},
    "J": {"J": 1.0, "mJ": 1e-3, "kJ": 1e3},
    "parameters": {"K": 1e3, "M": 1e6, "B": 1e9},
    "tokens": {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9},
}
_COUNTED_IN = {
    "s": "a time",
    "bytes": "a size",
    "tokens/s": "a rate of tokens",
    "J": "an energy",
    "parameters": "a number of parameters",
    "tokens": "a number of tokens",
}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([a-zA-Zµ%/]*)\s*")


def parse_quantity(text: str, unit: str, field: str) -> float:
    """Reads a number with its unit, such as ``80ms`` or ``1.5 GiB``.

    Args:
        text: what the user wrote.
        unit: the base unit wanted: ``s``, ``bytes``, ``tokens/s``, ``J``, ``parameters`` or ``tokens``.
        field: where it stood, for messages.

    Returns:
        The quantity in the base unit.

    Raises:
        InputError: no number, no unit, or a unit of something else. Only tokens may go without a unit.
    """
    match = _NUMBER.fullmatch(text)
    suffix = match[2] if match else ""
    if match and unit == "tokens" and not suffix:
        return float(match[1])
    if not match or suffix not in _FACTORS[unit]:
        raise InputError(
            field,
            got=repr(text),
            expected=f"a number above 0 with one of the units {', '.join(_FACTORS[unit])}",
            remedy=_remedy(text, suffix, unit),
        )
    return float(match[1]) * _FACTORS[unit][suffix]


def _remedy(text: str, suffix: str, unit: str) -> str:
    """What is wrong with a text that is no amount of a unit."""
    example = f"such as 20{next(iter(_FACTORS[unit])) if unit != 'bytes' else 'GB'}"
    if text.strip().startswith("-"):
        return f"Write an amount above 0, {example}."
    if not _NUMBER.fullmatch(text):
        return f"Write a number and its unit, {example}."
    if not suffix:
        more = ": 20GB and 20GiB differ, and a bare number says neither" if unit == "bytes" else f", {example}"
        return f"Write the unit too{more}."
    other = next((name for name, factors in _FACTORS.items() if suffix in factors), None)
    if other is None:
        return f"{suffix} is no unit that is known here: write one of those named, {example}."
    return f"{suffix} is a unit of {_COUNTED_IN[other]}, and {_COUNTED_IN[unit]} is wanted."


def parse_percent(text: str) -> float | None:
    """The share that ``60%`` names, 0.6; None where the text is no percentage."""
    match = _NUMBER.fullmatch(text)
    return float(match[1]) / 100 if match and match[2] == "%" else None


def format_time(time_s: float) -> str:
    """Writes a time with three digits: ``1.23 ms``."""
    for factor, name in ((1.0, "s"), (1e-3, "ms")):
        if abs(time_s) >= factor:
            return f"{_digits(time_s / factor)} {name}"
    return f"{_digits(time_s / 1e-6)} µs"


def format_bytes(num_bytes: float, is_binary: bool = False) -> str:
    """Writes a size with three digits in powers of ten, ``7.41 MB``, or of 1024, ``7.07 MiB``."""
    ten, two = ("TB", "GB", "MB", "kB"), ("TiB", "GiB", "MiB", "KiB")
    for name in two if is_binary else ten:
        factor = _FACTORS["bytes"][name]
        if abs(num_bytes) >= factor:
            return f"{_digits(num_bytes / factor)} {name}"
    return f"{num_bytes:.0f} B"


def format_count(count: float) -> str:
    """Writes a number of things with three digits: ``1.84 M``."""
    for factor, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= factor:
            return f"{_digits(count / factor)}{name}"
    return f"{count:.0f}"


def format_score(score: float) -> str:
    """Writes a sum of scores with four places, and no more digits than tell something: ``0.8452``, ``1.234e+06``."""
    return f"{score:.4f}" if abs(score) < 1e6 else f"{score:.4g}"


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def format_quantity(value: float, unit: str, is_binary: bool = False) -> str:
    """Writes an amount of ``s``, ``bytes``, ``tokens/s``, ``J``, ``parameters``; bytes in powers of 1024."""
    if unit == "bytes":
        return format_bytes(value, is_binary)
    writers = {
        "s": format_time,
        "tokens/s": _format_rate,
        "J": _format_energy,
        "parameters": format_count,
    }
    return writers[unit](value)


def _format_rate(tokens_per_s: float) -> str:
    is_large = abs(tokens_per_s) >= 1e3
    return f"{_digits(tokens_per_s / 1e3)} ktok/s" if is_large else f"{_digits(tokens_per_s)} tok/s"


def _format_energy(energy_j: float) -> str:
    for factor, name in ((1e3, "kJ"), (1.0, "J")):
        if abs(energy_j) >= factor:
            return f"{_digits(energy_j / factor)} {name}"
    return f"{_digits(energy_j / 1e-3)} mJ"
