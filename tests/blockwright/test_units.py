"""Quantities are read with their unit and written for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.errors import InputError
from blockwright.units import format_bytes, format_count, format_time, parse_percent, parse_quantity


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
    ],
)
def test_a_quantity_without_the_right_unit_is_refused(text: str, unit: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_quantity(text, unit, "budget")
    assert caught.value.field == "budget"
    assert caught.value.got == repr(text)


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


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1234, "1.23 k"), (1.84e6, "1.84 M"), (7e9, "7 B")]
)
def test_a_count_is_written_with_three_digits(count: float, text: str) -> None:
    assert format_count(count) == text
