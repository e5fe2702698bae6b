"""Quantities are read with their unit and written for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.errors import InputError
from blockwright.units import (
    format_bytes,
    format_count,
    format_quantity,
    format_time,
    parse_percent,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("80ms", "s", 0.08),
        ("1.5 s", "s", 1.5),
        ("7us", "s", 7e-6),
        ("7 µs", "s", 7e-6),
        ("2e-3s", "s", 0.002),
        ("20GB", "bytes", 20e9),
        ("1.5 GiB", "bytes", 1.5 * 2**30),
        (".5MiB", "bytes", 2.0**19),
        ("3B", "bytes", 3.0),
        ("3B", "parameters", 3e9),
        ("25 tok/s", "tokens/s", 25.0),
        ("1.2ktok/s", "tokens/s", 1200.0),
        ("3J", "J", 3.0),
        ("40 mJ", "J", 0.04),
        ("1.5kJ", "J", 1500.0),
        ("80M", "tokens", 80e6),
        ("512", "tokens", 512.0),
    ],
)
def test_a_quantity_is_read_in_its_base_unit(text: str, unit: str, value: float) -> None:
    assert parse_quantity(text, unit, "field") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("20", "bytes"),
        ("20", "s"),
        ("20 GB", "s"),
        ("20 mS", "s"),
        ("ms", "s"),
        ("-3ms", "s"),
        ("", "s"),
        ("1.2.3s", "s"),
        ("20", "tokens/s"),
        ("20 tok", "tokens/s"),
        ("20 J/s", "J"),
        ("20 W", "J"),
    ],
)
def test_a_quantity_without_the_right_unit_is_refused(text: str, unit: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_quantity(text, unit, "budget")
    assert caught.value.field == "budget"
    assert caught.value.got == repr(text)


@pytest.mark.parametrize(
    ("text", "unit", "remedy"),
    [
        ("20 GB", "s", "GB is a unit of a size, and a time is wanted."),
        ("20 ms", "J", "ms is a unit of a time, and an energy is wanted."),
        ("20 mJ", "tokens/s", "mJ is a unit of an energy, and a rate of tokens is wanted."),
        ("20 tok/s", "bytes", "tok/s is a unit of a rate of tokens, and a size is wanted."),
        ("20 ms", "parameters", "ms is a unit of a time, and a number of parameters is wanted."),
        ("20 ms", "tokens", "ms is a unit of a time, and a number of tokens is wanted."),
    ],
)
def test_a_unit_of_another_quantity_is_named(text: str, unit: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_quantity(text, unit, "budget")
    assert caught.value.remedy == remedy


def test_a_percentage_is_a_share() -> None:
    assert parse_percent("60%") == pytest.approx(0.6)
    assert parse_percent("60") is None
    assert parse_percent("60ms") is None


@given(st.floats(1e-7, 1e4))
def test_a_written_time_is_read_back_to_three_digits(time_s: float) -> None:
    assert parse_quantity(format_time(time_s), "s", "t") == pytest.approx(time_s, rel=0.006)


@given(st.floats(100, 1e15))
def test_a_written_size_is_read_back_to_three_digits(num_bytes: float) -> None:
    assert parse_quantity(format_bytes(num_bytes), "bytes", "m") == pytest.approx(num_bytes, rel=0.006)


@given(st.floats(1e-7, 1e9), st.sampled_from(["tokens/s", "J"]))
def test_a_written_rate_or_energy_is_read_back_to_three_digits(value: float, unit: str) -> None:
    assert parse_quantity(format_quantity(value, unit), unit, "q") == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234.0, "tokens/s", "1.23 ktok/s"),
        (25.0, "tokens/s", "25 tok/s"),
        (0.0405, "J", "40.5 mJ"),
        (2.5, "J", "2.5 J"),
        (1500.0, "J", "1.5 kJ"),
        (0.002, "s", "2 ms"),
        (2e9, "bytes", "2 GB"),
        (2e9, "parameters", "2 B"),
    ],
)
def test_a_quantity_is_written_in_its_unit(value: float, unit: str, text: str) -> None:
    assert format_quantity(value, unit) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1234, "1.23 k"), (1.84e6, "1.84 M"), (7e9, "7 B")]
)
def test_a_count_is_written_with_three_digits(count: float, text: str) -> None:
    assert format_count(count) == text
