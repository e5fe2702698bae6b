"""How long a model takes on a device: tables of times, from the device's profile.

At one point (batch, new tokens, slots) a model takes

    time = intercept + Σ scale · time(part)        over the mixers and ffns of its layers

where the times of parts are measured as slopes, and intercept and scale are fitted on the anchors: whole models of one
format measured at that point, the parent among them. Parts do not quite add up in a whole model, mostly for their
weights share caches; the scale carries that. The interval is the largest error on the held-out whole models of that
point, and no less than 2 %: of four of them, so a fifth lies outside of it once in five times. Once the profile was
tried on children (`blockwright profile validate`), it is no less than what nine in ten of those were off.

Where layers differ in format, each part takes its time and its scale from its own format's table, and the intercept
comes from the format whose head the model has. No mixed model was measured, so the interval is the largest of the
formats' ones.

Between two measured points that differ in slots only, in new tokens only, or in batch only, time is linear. Beyond the
last one it is refused, or, where that is allowed, the line is continued (`_beyond` says at what interval). A variant
that was not measured lies between those that were in the same way (`between`), at an interval that is wider for it.
"""

import functools
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from blockwright.cost import Cost, exact, total
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, Point, Profile, TimeRow, WholeRow, parent_of
from blockwright.profiler.between import Between, Neighbourhood, between
from blockwright.profiler.parts import PartCosts, Source
from blockwright.spec import FFN, Mixer, NoOp, Part, variant_name, with_format

_MIN_RELATIVE_ERROR = 0.02
"""Less is not claimed, however well the few held-out models were met: medians of the same model repeat within 2 % on a
calm 2-core Zen 3."""
_ALIKE = 0.1
"""Anchors repeat within about 1 %, and scales of mixers and ffns differ by about 10 %: that is how the equation that
they are alike weighs against the anchors'."""
_AXES = ("slots", "new_tokens", "batch")
"""What measured points are joined along, the one that bends time least first."""
PartKey = tuple[str, str]
"""(``mixer`` or ``ffn``, `variant_name`)."""

Layers = tuple[tuple[str, str], ...]
"""`variant_name` of each layer's mixer and ffn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTable:
    """Times at one point: the intercept, each part's share already scaled, and the relative error of a sum."""

    intercept_s: float
    parts_s: dict[PartKey, float]
    relative_error: float

    def of_layers(self, layers: Layers) -> float:
        """The time of a whole model, in seconds."""
        return self.intercept_s + _sum_of_parts(self.parts_s, layers)


def time_costs(source: Source, points: list[Point]) -> PartCosts:
    """The time that a model's fixed part and any mixer and ffn take at all of the points, one after another.

    Raises:
        InputError: one of the formats has no measurements for one of the points.
    """
    tables = {name: [table_at(source, name, point) for point in points] for name in source.formats}
    phase = "decode" if all(point.new_tokens == 1 for point in points) else "prefill"
    tried = [row.p90_error for row in source.profile.accuracy if row.phase == phase and row.format in tables]
    error = max([*tried, *(table.relative_error for of_format in tables.values() for table in of_format)])

    def cost(value: float) -> Cost:
        return Cost(value=value, low=value - error * abs(value), high=value + error * abs(value), origin="modelled")

    @functools.cache
    def lookup(part: Part, variant: Mixer | FFN) -> Cost:
        if isinstance(variant, NoOp):
            return exact(0.0)
        key, of_format = (part, variant_name(variant)), tables.get(str(variant.weights), [])
        if of_format and all(key in table.parts_s for table in of_format):
            return cost(sum(table.parts_s[key] for table in of_format))
        found = [_between(source, table, point, part, variant) for table, point in zip(of_format, points, strict=False)]
        if not found or None in found:
            raise InputError(
                f"profile {source.profile.name}",
                got=f"no time of {key[1]} as {part} in {variant.weights}",
                expected="a time for every candidate, or of ones on both sides of it, in one of the formats asked for: "
                + ", ".join(tables),
                remedy="Profile again with this space and format: blockwright profile --for PARENT --format …",
            )
        return total(_widened(one, error) for one in found if one is not None)

    return PartCosts(
        fixed=cost(sum(table.intercept_s for table in tables[source.formats[0]])),
        of_mixer=lambda mixer: lookup("mixer", mixer),
        of_ffn=lambda ffn: lookup("ffn", ffn),
    )


def _between(source: Source, table: PointTable, point: Point, part: Part, variant: Mixer | FFN) -> Between | None:
    """The time of a variant that was not measured; None where nothing like it was."""
    assert not isinstance(variant, NoOp)
    model = with_format(parent_of(source.profile), variant.weights)
    known = Neighbourhood(model=model, ceilings=source.profile.ceilings, point=point, times_s=table.parts_s)
    return between(part, variant, known, source.may_extrapolate)


def _widened(found: Between, error: float) -> Cost:
    """Its own error beside that of the sums."""
    half = (error + found.relative_error) * abs(found.time_s)
    return Cost(value=found.time_s, low=found.time_s - half, high=found.time_s + half, origin=found.origin)


def table_at(source: Source, weights_format: str, point: Point) -> PointTable:
    """The times of a format at a point: measured, between two measured ones, or beyond them where that is allowed.

    Raises:
        InputError: the point is outside what was measured, or too little was measured to go beyond it.
    """
    profile, backend = source.profile, source.backend
    measured = {row.point for row in profile.times if (row.backend, row.format) == (backend, weights_format)}
    if point in measured:
        return _fit(profile, backend, weights_format, point)
    for axis in _AXES:
        for below, above in pairwise(_in_line(measured, point, axis)):
            if getattr(below, axis) < getattr(point, axis) < getattr(above, axis):
                tables = [_fit(profile, backend, weights_format, p) for p in (below, above)]
                return _on_line(tables[0], tables[1], _share(below, above, point, axis))
    if source.may_extrapolate:
        for axis in _AXES:
            if len(line := _in_line(measured, point, axis)) >= 2:
                return _beyond(source, weights_format, line, point, axis)
    raise _outside(source, weights_format, point, measured)


def _fit(profile: Profile, backend: Backend, weights_format: str, point: Point) -> PointTable:
    """Intercept and scales by least squares of relative errors on the anchors of a point.

    Mixers and ffns have a scale each, held together by one more equation that says that they are alike.
    """
    key = (backend, weights_format, point)
    rows: list[TimeRow] = [row for row in profile.times if (row.backend, row.format, row.point) == key]
    parts = {(row.part, row.variant): row.time_s for row in rows}
    wholes = _wholes_at(profile, backend, weights_format, point)
    anchors = [row for row in wholes if row.is_anchor]
    if not anchors:
        raise InputError(
            f"profile {profile.name}: wholes",
            got=f"no anchor of {weights_format} on {backend} at {_describe(point)}",
            expected="whole models measured at every point where parts were",
            remedy="Profile again: the file is incomplete.",
        )
    where = f"{weights_format} on {backend} at {_describe(point)}"
    by_part = [{key: time_s * (key[0] == part) for key, time_s in parts.items()} for part in ("mixer", "ffn")]
    sums = np.array([[_sum_of_parts(times, row.layers, where) for times in by_part] for row in wholes])
    is_anchor = np.array([row.is_anchor for row in wholes])
    columns = np.column_stack([np.ones(len(wholes)), sums]) / np.array([row.time_s for row in wholes])[:, None]
    equations = np.vstack([columns[is_anchor], [0.0, _ALIKE, -_ALIKE]])
    found = np.linalg.lstsq(equations, np.append(np.ones(is_anchor.sum()), 0.0), rcond=None)[0]
    scale_of = {"mixer": found[1], "ffn": found[2]}
    errors = np.abs(1 / (columns[~is_anchor] @ found) - 1)
    return PointTable(
        intercept_s=float(found[0]),
        parts_s={key: float(scale_of[key[0]] * time_s) for key, time_s in parts.items()},
        relative_error=max([_MIN_RELATIVE_ERROR, *map(float, errors)]),
    )


def _wholes_at(profile: Profile, backend: Backend, weights_format: str, point: Point) -> list[WholeRow]:
    key = (backend, weights_format, point)
    return [row for row in profile.wholes if (row.backend, row.format, row.point) == key]


def _parts_of(layers: Layers) -> list[PartKey]:
    names = [key for mixer, ffn in layers for key in (("mixer", mixer), ("ffn", ffn))]
    return [key for key in names if key[1] != "none"]


def _sum_of_parts(parts_s: dict[PartKey, float], layers: Layers, where: str = "this table") -> float:
    missing = next((key for key in _parts_of(layers) if key not in parts_s), None)
    if missing is not None:
        raise InputError(
            "profile: times",
            got=f"no time of {missing[1]} as {missing[0]}, {where}",
            expected="a time of every part of the whole models that were measured",
            remedy="Profile again: the table is incomplete.",
        )
    return sum(parts_s[key] for key in _parts_of(layers))


def _on_line(first: PointTable, second: PointTable, share: float) -> PointTable:
    """What lies on the line through two tables: the first at a share of 0, the second at 1."""

    def blend(a: float, b: float) -> float:
        return (1 - share) * a + share * b

    return PointTable(
        intercept_s=blend(first.intercept_s, second.intercept_s),
        parts_s={
            key: blend(time_s, second.parts_s[key]) for key, time_s in first.parts_s.items() if key in second.parts_s
        },
        relative_error=max(first.relative_error, second.relative_error),
    )


def _beyond(source: Source, weights_format: str, line: list[Point], point: Point, axis: str) -> PointTable:
    """The line through the two nearest measured points continued; no part takes less than nothing.

    Its relative error is the nearest point's, plus the difference between continuing the line and simply taking the
    nearest point, as a share of the former: the largest over the whole models that were measured there.

    Raises:
        InputError: the line says that whole models take no time.
    """
    is_below = getattr(point, axis) < getattr(line[0], axis)
    nearest, next_one = line[:2] if is_below else reversed(line[-2:])
    profile, backend = source.profile, source.backend
    near, far = (_fit(profile, backend, weights_format, p) for p in (nearest, next_one))
    straight = _on_line(near, far, _share(nearest, next_one, point, axis))
    table = replace(
        straight,
        intercept_s=max(0.0, straight.intercept_s),
        parts_s={key: max(0.0, time_s) for key, time_s in straight.parts_s.items()},
    )
    wholes = [row.layers for row in _wholes_at(profile, backend, weights_format, nearest)]
    times = [
        (table.of_layers(layers), near.of_layers(layers))
        for layers in wholes
        if _parts_of(layers) and set(_parts_of(layers)) <= table.parts_s.keys()
    ]
    if not times or min(there for there, _ in times) <= 0:
        raise InputError(
            f"profile {profile.name}: load",
            got=f"a line through {_describe(next_one)} and {_describe(nearest)}, {weights_format} on {backend}",
            expected=f"one on which whole models take some time at {_describe(point)}",
            remedy="This is too far from what was measured: blockwright profile --load …",
        )
    return replace(table, relative_error=near.relative_error + max(abs(1 - here / there) for there, here in times))


def _in_line(measured: set[Point], point: Point, axis: str) -> list[Point]:
    """The measured points that differ from a point along one axis only, in order."""
    moved = (p for p in measured if replace(p, **{axis: getattr(point, axis)}) == point)
    return sorted(moved, key=lambda p: getattr(p, axis))


def _share(first: Point, second: Point, point: Point, axis: str) -> float:
    return (getattr(point, axis) - getattr(first, axis)) / (getattr(second, axis) - getattr(first, axis))


def _outside(source: Source, weights_format: str, point: Point, measured: set[Point]) -> InputError:
    where = f"{weights_format} on {source.backend}"
    again = "Profile again with this load and format: blockwright profile --load … --format …"
    if not measured:
        expected, remedy = f"measurements of {where}, and there are none", again
    else:
        expected = "a point between measured ones: " + "; ".join(_describe(p) for p in _sorted(measured))
        expected += f" (measured: {_range(measured)})"
        remedy = again + (
            "; --extrapolate needs two measured points in line with this one, and there are none."
            if source.may_extrapolate
            else "; or go beyond the measured points, at a wider interval, with --extrapolate."
        )
    return InputError(
        f"profile {source.profile.name}: load", got=f"{_describe(point)}, {where}", expected=expected, remedy=remedy
    )


def _sorted(points: set[Point]) -> list[Point]:
    return sorted(points, key=lambda p: (p.batch, p.new_tokens, p.slots))


def _range(points: set[Point]) -> str:
    """The least and the most that was measured of everything."""

    def span(values: list[int]) -> str:
        return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"

    return (
        f"batch {span([p.batch for p in points])}, {span([p.new_tokens for p in points])} tokens at once, "
        f"prompt and new tokens together in {span([p.slots for p in points])} slots"
    )


def _describe(point: Point) -> str:
    return f"batch {point.batch}, {point.new_tokens} new, {point.slots} slots"
