"""Times of variants that were not measured, between those that were.

Variants of one part that differ in one number only (an ffn's width, the heads of keys and values, a window) lie on an
axis. What a device makes of them is their utilisation, the roofline by its measured ceilings over the time; between
neighbours its inverse is taken as a line over the inverse of the roofline,

    time / roofline = share of the ceilings that is lost + fixed time / roofline

so that launches, bytes and products each keep their meaning, and a variant that reaches as much as its neighbours do is
met exactly. The error is the largest that leaving out each variant between two others makes; where only two were
measured, that the larger one's utilisation does not hold for the smaller.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from blockwright.cost import Origin
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.profile import Point
from blockwright.hw_profiles.variants import parse_variant
from blockwright.profiler.datasheet import roofline_s
from blockwright.profiler.operators import ffn_operators, mixer_operators
from blockwright.spec import FFN, Attention, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp, Part, Window

Measured = Mapping[tuple[str, str], float]
"""Seconds of parts, by (``mixer`` or ``ffn``, `variant_name`)."""

_Place = tuple[float, float]
"""The roofline of a variant in seconds, and its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """The time of a variant that was not measured."""

    time_s: float
    relative_error: float
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """What was measured of parts, in one format at one point."""

    model: Model
    """Gives the shared dimensions."""
    ceilings: Ceilings
    point: Point
    times_s: Measured

    def roofline_s(self, variant: Mixer | FFN) -> float:
        """The least that the device can take for a variant.

        Raises:
            InputError: the ceilings have no rate of the variant's format.
        """
        match variant:
            case Attention() | LinearMixer():
                operators = mixer_operators(self.model, variant, self.point)
            case GatedFFN() | LinearFFN():
                operators = ffn_operators(self.model, variant, self.point)
            case NoOp():
                return 0.0
        return float(roofline_s(operators, self.ceilings).sum())


def between(part: Part, variant: Mixer | FFN, known: Neighbourhood, may_extrapolate: bool) -> Between | None:
    """The time of a variant, from the nearest ones on the axis where the error is least.

    Args:
        part: what it stands as.
        variant: what was not measured.
        known: what was.
        may_extrapolate: whether the line is continued beyond the measured variants, at an interval that reaches back
            to the nearest one's utilisation.

    Returns:
        None where no two measured variants lie on an axis with it, or it lies beyond them and may not.

    Raises:
        InputError: the ceilings have no rate of the variant's format.
    """
    found = [one for axis in _axes(part, variant, known) if (one := _on_axis(axis, known, variant, may_extrapolate))]
    return min(found, key=lambda one: (one.origin == "modelled", one.relative_error), default=None)


def _axes(part: Part, variant: Mixer | FFN, known: Neighbourhood) -> list[dict[float, _Place]]:
    """The measured variants that differ from this one in one number only, by its logarithm less this one's."""
    axes: dict[str, dict[float, _Place]] = {}
    for (of_part, name), time_s in known.times_s.items():
        if of_part == part and not isinstance(variant, NoOp):
            other = parse_variant(part, name, variant.weights)
            if (step := _step(variant, other, known.point)) is not None:
                axes.setdefault(step[0], {})[step[1]] = (known.roofline_s(other), time_s)
    return [axis for axis in axes.values() if len(axis) >= 2]


def _step(variant: Mixer | FFN, other: Mixer | FFN, point: Point) -> tuple[str, float] | None:
    """The one number in which two variants differ, and how far."""
    match variant, other:
        case GatedFFN(width=here), GatedFFN(width=there):
            return "width", float(np.log(there / here))
        case Attention(), Attention():
            if replace(other, num_kv_heads=variant.num_kv_heads) == variant:
                return "kv", float(np.log(other.num_kv_heads / variant.num_kv_heads))
            if variant.num_kv_heads == other.num_kv_heads:
                return "window", float(np.log(_reach(other, point) / _reach(variant, point)))
    return None


def _reach(attention: Attention, point: Point) -> int:
    """Slots that are read."""
    reach = attention.reach
    return min(reach.num_tokens, point.slots) if isinstance(reach, Window) else point.slots


def _on_axis(
    axis: dict[float, _Place], known: Neighbourhood, variant: Mixer | FFN, may_extrapolate: bool
) -> Between | None:
    steps = sorted(axis)
    places = [axis[step] for step in steps]
    roofline = known.roofline_s(variant)
    error = _left_out_error(places)
    if steps[0] <= 0 <= steps[-1]:
        above = int(np.searchsorted(steps, 0))
        time_s = _through(places[max(0, above - 1)], places[max(1, above)], roofline)
        return Between(time_s=time_s, relative_error=error, origin="interpolated")
    if not may_extrapolate:
        return None
    nearest, further = (places[0], places[1]) if steps[0] > 0 else (places[-1], places[-2])
    time_s, kept_s = max(0.0, _through(nearest, further, roofline)), _scaled(nearest, roofline)
    back = abs(1 - kept_s / time_s) if time_s > 0 else 1.0
    return Between(time_s=time_s, relative_error=error + back, origin="modelled")


def _left_out_error(places: list[_Place]) -> float:
    """The largest relative error on variants that were left out, each foretold by its neighbours."""
    if len(places) == 2:
        (first, first_s), (second, second_s) = places
        shares = first_s / first, second_s / second
        return 1 - min(shares) / max(shares) if max(shares) > 0 else 0.0
    foretold = [_through(places[at - 1], places[at + 1], places[at][0]) for at in range(1, len(places) - 1)]
    measured = [time_s for _, time_s in places[1:-1]]
    return max(abs(time_s / guess - 1) if guess > 0 else 1.0 for time_s, guess in zip(measured, foretold, strict=True))


def _through(first: _Place, second: _Place, roofline: float) -> float:
    """Inverse utilisation linear in the inverse of the roofline: the time is linear in the roofline."""
    if first[0] == second[0]:
        return (first[1] + second[1]) / 2
    share = (roofline - first[0]) / (second[0] - first[0])
    return (1 - share) * first[1] + share * second[1]


def _scaled(place: _Place, roofline: float) -> float:
    """The time at the utilisation of a place."""
    return place[1] * roofline / place[0]
