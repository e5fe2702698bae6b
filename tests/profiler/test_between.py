"""Variants between measured ones, from times made up so that every answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import Point, Profile, parent_of
from blockwright.profiler.between import Between, Neighbourhood, between
from blockwright.profiler.cost_model import part_costs
from blockwright.profiler.datasheet import roofline_s
from blockwright.profiler.operators import ffn_operators, mixer_operators
from blockwright.spec import FFN, Attention, GatedFFN, LinearFFN, Mixer, Window, parse_format, variant_name

SHIPPED = read_profile(measured_profiles()[0])
MODEL = parent_of(SHIPPED)
LOAD = Load(batch=1, prompt_tokens=128, new_tokens=128)
POINT = Point(batch=1, new_tokens=1, slots=256)


def _figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, origin="measured", source="made up")


CEILINGS = Ceilings(read_bytes_per_s=_figure(20e9), flop_per_s={"fp32": _figure(90e9)}, launch_s=_figure(1e-6))


def _roofline(variant: Mixer | FFN, point: Point = POINT) -> float:
    operators = (
        ffn_operators(MODEL, variant, point)
        if isinstance(variant, GatedFFN | LinearFFN)
        else mixer_operators(MODEL, variant, point)
    )
    return float(roofline_s(operators, CEILINGS).sum())


def _known(times: dict[Mixer | FFN, float], point: Point = POINT) -> Neighbourhood:
    named = {("ffn" if isinstance(v, FFN) else "mixer", variant_name(v)): time_s for v, time_s in times.items()}
    return Neighbourhood(model=MODEL, ceilings=CEILINGS, point=point, times_s=named)


def _widths(*widths: int, launch_s: float = 5e-6, share: float = 0.5) -> Neighbourhood:
    """A fixed time and a share of the ceilings."""
    return _known({GatedFFN(width=w): launch_s + _roofline(GatedFFN(width=w)) / share for w in widths})


def _found(variant: Mixer | FFN, known: Neighbourhood, may_extrapolate: bool = False) -> Between:
    found = between("ffn" if isinstance(variant, FFN) else "mixer", variant, known, may_extrapolate)
    assert found is not None
    return found


@pytest.mark.parametrize("width", [97, 160, 200, 300, 383])
@pytest.mark.parametrize("point", [POINT, Point(batch=4, new_tokens=128, slots=256)])
def test_launches_and_a_share_of_the_ceilings_are_met_exactly(width: int, point: Point) -> None:
    time = {w: 5e-6 + _roofline(GatedFFN(width=w), point) / 0.4 for w in (96, 192, 288, 384, width)}
    known = _known({GatedFFN(width=w): time[w] for w in (96, 192, 288, 384)}, point)
    found = _found(GatedFFN(width=width), known)
    assert found.time_s == pytest.approx(time[width], rel=1e-9)
    assert (found.origin, found.relative_error) == ("interpolated", pytest.approx(0, abs=1e-9))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_line_over_the_roofline(seed: int) -> None:
    generator = np.random.default_rng(seed)
    widths = sorted(int(w) for w in generator.choice(np.arange(32, 1024, 8), 6, replace=False))
    times = sorted(generator.uniform(1e-6, 9e-6, 6))
    known = _known({GatedFFN(width=w): t for w, t in zip(widths, times, strict=True)})
    for width in generator.integers(widths[0], widths[-1], 8):
        naive = np.interp(_roofline(GatedFFN(width=int(width))), [_roofline(GatedFFN(width=w)) for w in widths], times)
        assert _found(GatedFFN(width=int(width)), known).time_s == pytest.approx(float(naive), rel=1e-9)


def test_the_error_is_the_largest_of_variants_left_out() -> None:
    known = _widths(96, 192, 288, 384)
    odd = dict(known.times_s) | {("ffn", "ffn-192"): 1.2 * known.times_s["ffn", "ffn-192"]}
    found = _found(GatedFFN(width=300), replace(known, times_s=odd))
    assert found.relative_error == pytest.approx(0.2, rel=1e-6)


def test_of_two_variants_the_error_is_that_utilisation_does_not_hold() -> None:
    alike = _found(GatedFFN(width=128), _widths(96, 192, launch_s=0.0))
    assert alike.relative_error == pytest.approx(0, abs=1e-9)
    known = _widths(96, 192)
    one, two = (known.times_s["ffn", f"ffn-{w}"] / _roofline(GatedFFN(width=w)) for w in (96, 192))
    assert _found(GatedFFN(width=128), known).relative_error == pytest.approx(1 - two / one)


@pytest.mark.parametrize("width", [16, 95, 385, 4096])
def test_beyond_the_measured_range_nothing_is_told_unless_it_may_be(width: int) -> None:
    known = _widths(96, 192, 384)
    assert between("ffn", GatedFFN(width=width), known, may_extrapolate=False) is None
    found = _found(GatedFFN(width=width), known, may_extrapolate=True)
    nearest = 96 if width < 96 else 384
    kept_s = known.times_s["ffn", f"ffn-{nearest}"] * _roofline(GatedFFN(width=width))
    kept_s /= _roofline(GatedFFN(width=nearest))
    assert found.origin == "modelled"
    assert found.time_s == pytest.approx(5e-6 + 2 * _roofline(GatedFFN(width=width)), rel=1e-9)
    assert found.relative_error >= abs(1 - kept_s / found.time_s) * (1 - 1e-9)


def test_the_heads_of_keys_and_values_lie_on_an_axis() -> None:
    mixers = [Attention(num_kv_heads=heads) for heads in (1, 2, 4, 8)]
    time = {mixer: 4e-6 + 3 * _roofline(mixer) for mixer in mixers}
    known = _known({mixer: time[mixer] for mixer in mixers if mixer.num_kv_heads != 2})
    assert _found(mixers[1], known).time_s == pytest.approx(time[mixers[1]], rel=1e-9)


def test_a_window_lies_between_a_narrower_one_and_all_slots() -> None:
    full, narrow = Attention(num_kv_heads=4), Attention(num_kv_heads=4, reach=Window(num_tokens=32))
    known = _known({mixer: 4e-6 + 3 * _roofline(mixer) for mixer in (full, narrow)})
    middle = replace(full, reach=Window(num_tokens=128))
    assert _found(middle, known).time_s == pytest.approx(4e-6 + 3 * _roofline(middle), rel=1e-9)
    beyond = replace(full, reach=Window(num_tokens=1024))  # reads all 256 slots
    assert _found(beyond, known).time_s == pytest.approx(4e-6 + 3 * _roofline(full), rel=1e-9)


def test_what_differs_in_two_numbers_is_not_on_an_axis() -> None:
    known = _known({Attention(num_kv_heads=heads): 1e-5 * heads for heads in (1, 4)})
    both = Attention(num_kv_heads=2, reach=Window(num_tokens=64))
    assert between("mixer", both, known, may_extrapolate=True) is None
    assert between("ffn", LinearFFN(), _widths(96, 192), may_extrapolate=True) is None


def test_a_format_without_a_rate_is_refused() -> None:
    known = replace(_widths(96, 192), ceilings=replace(CEILINGS, flop_per_s={"bf16": _figure(1e12)}))
    with pytest.raises(InputError, match="fp32"):
        between("ffn", GatedFFN(width=128), known, may_extrapolate=False)


@pytest.mark.parametrize("name", measured_profiles())
def test_real_widths_are_foretold_by_their_neighbours(name: str) -> None:
    """Each within a tenth; in the mean twice as well as by the utilisation of the next wider one, kept."""
    errors, naive = np.array([_errors_of_real_width(*case) for case in _real_widths(read_profile(name))]).T
    assert errors.max() < 0.1
    assert 2 * errors.mean() < naive.mean()


def _real_widths(profile: Profile) -> list[tuple[Neighbourhood, str, int]]:
    """The measured ffns but the narrowest and the widest, in every format at every point."""
    found = []
    for weights, point in dict.fromkeys((row.format, row.point) for row in profile.times):
        known = {
            (row.part, row.variant): row.time_s
            for row in profile.times
            if (row.format, row.point) == (weights, point) and row.variant.startswith("ffn-")
        }
        place = Neighbourhood(model=parent_of(profile), ceilings=profile.ceilings, point=point, times_s=known)
        widths = sorted(int(variant.removeprefix("ffn-")) for _, variant in known)
        found += [(place, weights, width) for width in widths[1:-1]]
    assert found
    return found


def _errors_of_real_width(place: Neighbourhood, weights: str, width: int) -> tuple[float, float]:
    """Of the line through its neighbours, and of the next wider one's utilisation."""
    left_out = GatedFFN(width=width, weights=parse_format(weights))
    known = dict(place.times_s)
    measured_s = known.pop(("ffn", variant_name(left_out)))
    wider = min(int(variant.removeprefix("ffn-")) for _, variant in known if int(variant.removeprefix("ffn-")) > width)
    kept = place.roofline_s(left_out) / place.roofline_s(replace(left_out, width=wider))
    foretold = _found(left_out, replace(place, times_s=known)).time_s, kept * known["ffn", f"ffn-{wider}"]
    return abs(foretold[0] / measured_s - 1), abs(foretold[1] / measured_s - 1)


@pytest.mark.parametrize("may_extrapolate", [False, True])
def test_costs_of_variants_between_are_interpolated_and_no_surer_than_measured_ones(may_extrapolate: bool) -> None:
    costs = part_costs(SHIPPED, MODEL, LOAD, "time_per_token", may_extrapolate=may_extrapolate)
    below, found, above = (costs.of_ffn(GatedFFN(width=width)) for width in (192, 240, 288))
    assert below.value < found.value < above.value
    assert (below.origin, found.origin) == ("modelled", "interpolated")
    for end in ("low", "high"):
        measured, new = (abs(getattr(cost, end) / cost.value - 1) for cost in (below, found))
        assert new >= measured * (1 - 1e-9) > 0


def test_costs_of_variants_beyond_are_refused_or_modelled() -> None:
    with pytest.raises(InputError, match="no time of ffn-512 as ffn in fp32"):
        part_costs(SHIPPED, MODEL, LOAD, "time_per_token").of_ffn(GatedFFN(width=512))
    cost = part_costs(SHIPPED, MODEL, LOAD, "time_per_token", may_extrapolate=True).of_ffn(GatedFFN(width=512))
    assert cost.origin == "modelled" and math.isfinite(cost.high) and cost.low < cost.value < cost.high
