"""Plain data becomes dataclasses, or an error that says where it does not fit."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from blockwright.errors import InputError
from blockwright.strict import from_data, kind_of, to_data


@dataclass(frozen=True)
class Circle:
    """One of two shapes."""

    radius: float


@dataclass(frozen=True)
class RightAngledBox:
    """The other."""

    sides: tuple[int, ...]


@dataclass(frozen=True)
class Drawing:
    """A bit of everything that a type may be."""

    shape: Circle | RightAngledBox
    size: tuple[int, str]
    labels: dict[str, Circle]
    mode: Literal["thin", 1]
    note: str | None = None
    inner: Circle | None = None
    number: int | float = 0
    steps: tuple[int, ...] | None = None


FULL: dict[str, Any] = {
    "shape": {"kind": "right_angled_box", "sides": [1, 2]},
    "size": [3, "cm"],
    "labels": {"a": {"radius": 1.5}},
    "mode": 1,
    "note": "n",
    "inner": {"radius": 2.0},
    "number": 2.5,
    "steps": [1, 2],
}


def test_a_class_is_called_by_its_name_in_snake_case() -> None:
    assert [kind_of(cls) for cls in (Circle, RightAngledBox)] == ["circle", "right_angled_box"]


def test_data_that_was_read_is_written_as_it_was() -> None:
    assert to_data(from_data(Drawing, FULL)) == FULL


def test_a_missing_key_takes_the_default_where_there_is_one() -> None:
    drawing = from_data(Drawing, {key: FULL[key] for key in ("shape", "size", "labels", "mode")})
    assert (drawing.note, drawing.inner, drawing.number, drawing.steps) == (None, None, 0, None)


def test_a_whole_number_serves_where_a_number_is_wanted() -> None:
    radius = from_data(Circle, {"radius": 2}).radius
    assert (radius, type(radius)) == (2.0, float)


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"colour": 1}, "d.colour", "one of shape, size"),
        ({"shape": {"kind": "star"}}, "d.shape.kind", "one of circle, right_angled_box"),
        ({"shape": {"kind": "circle", "radius": 1, "sides": []}}, "d.shape.sides", "one of radius"),
        ({"shape": {"kind": ["circle"]}}, "d.shape.kind", "one of circle"),
        ({"shape": None}, "d.shape.kind", "one of circle"),
        ({"size": [3]}, "d.size", "a list of 2"),
        ({"size": [3, 4]}, "d.size[1]", "text"),
        ({"size": "3"}, "d.size", "a list"),
        ({"labels": []}, "d.labels", "a mapping"),
        ({"labels": {"a": {"radius": "x"}}}, "d.labels.a.radius", "a number"),
        ({"labels": {"a": {"radius": True}}}, "d.labels.a.radius", "a number"),
        ({"labels": {"a": {"radius": 1, "kind": "circle"}}}, "d.labels.a.kind", "one of radius"),
        ({"mode": "thick"}, "d.mode", "one of thin, 1"),
        ({"mode": True}, "d.mode", "one of thin, 1"),
        ({"note": 3}, "d.note", "text"),
        ({"steps": 3}, "d.steps", "a list"),
        ({"steps": ["x"]}, "d.steps[0]", "a whole number"),
        ({"inner": 3}, "d.inner", "a mapping with the keys radius"),
        ({"number": "3"}, "d.number", "int or float"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(change: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        from_data(Drawing, FULL | change, "d")
    assert caught.value.field == field
    assert expected in caught.value.expected


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        from_data(int, "x" * 1000, "n")
    assert len(str(caught.value)) < 300
