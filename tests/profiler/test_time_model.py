"""Times at points that were not measured: between measured ones, and beyond them where that is allowed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import Point, Profile, TimeRow, WholeRow
from blockwright.llama import llama
from blockwright.profiler.cost_model import part_costs, predict
from blockwright.profiler.parts import Source
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.profiler.time_model import PointTable, table_at
from blockwright.spec import Attention, Block, GatedFFN, Part, variant_name

MIXER, FFN = Attention(num_kv_heads=2), GatedFFN(width=64)
PARENT = llama(
    (Block(mixer=MIXER, ffn=FFN),) * 2, hidden_size=64, num_heads=4, head_dim=16, vocab_size=96, max_positions=4096
)
KEY: dict[Part, tuple[str, str]] = {"mixer": ("mixer", variant_name(MIXER)), "ffn": ("ffn", variant_name(FFN))}
LAYERS = ((KEY["mixer"][1], KEY["ffn"][1]),)
ORIGIN = {"batch": 1, "new_tokens": 8, "slots": 128}
Times = Callable[[Point], tuple[float, float, float]]


def _linear(point: Point) -> tuple[float, float, float]:
    """Intercept, mixer and ffn: all of them linear in everything, within a product."""
    work = point.batch * point.new_tokens
    return 1e-5 + 1e-6 * work, 1e-6 * (3 + 0.01 * point.slots) * work, 2e-6 * work


def _profile(points: Sequence[Point], times: Times = _linear, held_out_error: float = 0.0) -> Profile:
    rows: list[TimeRow] = []
    wholes: list[WholeRow] = []
    for point in points:
        intercept, mixer, ffn = times(point)
        figures = {"point": point, "low_s": 0.0, "high_s": 1.0, "num_samples": 9, "num_rejected": 0}
        figures |= {"backend": "onnxruntime", "format": "fp32", "origin": "measured"}
        rows.append(TimeRow(part="mixer", variant=KEY["mixer"][1], time_s=mixer, **figures))
        rows.append(TimeRow(part="ffn", variant=KEY["ffn"][1], time_s=ffn, **figures))
        for depth, is_anchor in ((1, True), (2, True), (3, False)):
            time_s = (intercept + depth * (mixer + ffn)) * (1 if is_anchor else 1 + held_out_error)
            wholes.append(WholeRow(layers=LAYERS * depth, is_anchor=is_anchor, time_s=time_s, **figures))
    return replace(
        read_profile(shipped_profiles()[0]),
        name="made-up",
        device=Device(
            vendor="none", model="made up", architecture="none", num_cores=1, memory_bytes=2**30, features=()
        ),
        software={},
        model=PARENT,
        times=tuple(rows),
        wholes=tuple(wholes),
        memory=(),
    )


def _table(profile: Profile, point: Point, may_extrapolate: bool = False) -> PointTable:
    source = Source(profile=profile, backend="onnxruntime", formats=("fp32",), may_extrapolate=may_extrapolate)
    return table_at(source, "fp32", point)


def _at(axis: str, *values: int) -> list[Point]:
    return [Point(**{**ORIGIN, axis: value}) for value in values]


def _approximately(table: PointTable, point: Point, times: Times = _linear) -> bool:
    intercept, mixer, ffn = times(point)
    found = (table.intercept_s, table.parts_s[KEY["mixer"]], table.parts_s[KEY["ffn"]])
    return found == pytest.approx((intercept, mixer, ffn), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("may_extrapolate", [False, True])
@pytest.mark.parametrize("axis", sorted(ORIGIN))
def test_between_two_points_time_is_linear(axis: str, may_extrapolate: bool) -> None:
    *measured, middle = _at(axis, 64, 320, 1000, 192)
    table = _table(_profile(measured, held_out_error=0.1), middle, may_extrapolate)
    assert _approximately(table, middle)
    assert table.relative_error == pytest.approx(0.1)


def test_between_two_points_the_error_is_the_larger_one() -> None:
    low, middle, high = _at("slots", 64, 192, 320)
    good, bad = _profile([low]), _profile([high], held_out_error=0.2)
    profile = replace(good, times=good.times + bad.times, wholes=good.wholes + bad.wholes)
    assert _table(profile, middle).relative_error == pytest.approx(0.2)


@pytest.mark.parametrize("axis", sorted(ORIGIN))
@pytest.mark.parametrize("value", [32, 2000])
def test_beyond_the_measured_points_a_load_is_refused_with_what_was_measured(axis: str, value: int) -> None:
    measured = _at(axis, 64, 320)
    with pytest.raises(InputError) as caught:
        _table(_profile(measured), _at(axis, value)[0])
    assert caught.value.field == "profile made-up: load"
    assert str(value) in str(caught.value.got)
    assert "64 to 320" in caught.value.expected
    assert "blockwright profile --load" in caught.value.remedy and "--extrapolate" in caught.value.remedy


@pytest.mark.parametrize("axis", sorted(ORIGIN))
@pytest.mark.parametrize("value", [60, 2000])
def test_beyond_the_measured_points_the_line_of_the_nearest_two_is_continued(axis: str, value: int) -> None:
    measured, (point,) = _at(axis, 64, 192, 320), _at(axis, value)
    near = measured[0] if value < 64 else measured[-1]
    further = measured[-1] if value < 64 else measured[0]

    def times(p: Point) -> tuple[float, float, float]:
        """The point that is furthest away lies off the line, and must not matter."""
        intercept, mixer, ffn = _linear(p)
        return (intercept, 5 * mixer, ffn) if p == further else (intercept, mixer, ffn)

    table = _table(_profile(measured, times, held_out_error=0.1), point, may_extrapolate=True)
    assert _approximately(table, point)
    (intercept, *parts), (near_intercept, *near_parts) = _linear(point), _linear(near)
    differences = [
        abs(1 - (near_intercept + depth * sum(near_parts)) / (intercept + depth * sum(parts))) for depth in (1, 2, 3)
    ]
    assert table.relative_error == pytest.approx(0.1 + max(differences), rel=1e-6)


@given(st.integers(321, 10**6))
def test_the_interval_beyond_reaches_back_to_the_nearest_point(slots: int) -> None:
    measured = _at("slots", 64, 320)
    profile = _profile(measured)
    near, table = _table(profile, measured[-1]), _table(profile, _at("slots", slots)[0], may_extrapolate=True)
    for depth in (1, 2, 3):
        time_s, near_s = table.of_layers(LAYERS * depth), near.of_layers(LAYERS * depth)
        assert time_s * (1 - table.relative_error) <= near_s <= time_s * (1 + table.relative_error)


@given(st.integers(1, 400), st.integers(0, 10**5))
def test_the_further_away_the_wider_the_interval(near: int, more: int) -> None:
    profile = _profile(_at("slots", 64, 320))
    points = _at("slots", 320 + near, 320 + near + more)
    errors = [_table(profile, point, may_extrapolate=True).relative_error for point in points]
    assert 0.02 < errors[0] <= errors[1]


def test_nothing_takes_less_than_no_time() -> None:
    def falling(point: Point) -> tuple[float, float, float]:
        return 1e-4 - 1e-7 * point.slots, 1e-5 + 1e-7 * point.slots, 1e-4 - 1e-7 * point.slots

    (point,) = _at("slots", 1500)
    table = _table(_profile(_at("slots", 64, 128), falling), point, may_extrapolate=True)
    assert (table.intercept_s, table.parts_s[KEY["ffn"]]) == (0.0, 0.0)
    assert table.parts_s[KEY["mixer"]] == pytest.approx(1.6e-4)


def test_a_line_on_which_models_take_no_time_is_refused() -> None:
    def falling(point: Point) -> tuple[float, float, float]:
        time_s = 1e-3 - 1e-6 * point.slots
        return time_s, time_s, time_s

    with pytest.raises(InputError, match="whole models take some time") as caught:
        _table(_profile(_at("slots", 64, 128), falling), _at("slots", 1500)[0], may_extrapolate=True)
    assert caught.value.field == "profile made-up: load"
    assert "128 slots" in str(caught.value.got) and "blockwright profile" in caught.value.remedy


@pytest.mark.parametrize("point", [Point(batch=1, new_tokens=8, slots=999), Point(batch=2, new_tokens=9, slots=256)])
def test_one_point_makes_no_line(point: Point) -> None:
    with pytest.raises(InputError, match="in line with this one"):
        _table(_profile([Point(batch=1, new_tokens=8, slots=128)]), point, may_extrapolate=True)


def test_one_batch_says_nothing_of_another() -> None:
    profile = _profile(_at("slots", 64, 320))
    with pytest.raises(InputError, match="batch 2"):
        _table(profile, Point(batch=2, new_tokens=8, slots=64), may_extrapolate=True)


def test_a_longer_load_is_told_where_two_were_measured() -> None:
    loads = [Load(batch=1, prompt_tokens=512, new_tokens=new) for new in (128, 512)]
    points = {point: None for load in loads for point in (*decode_points(load), *prefill_points(load))}
    profile, longer = _profile(list(points)), replace(loads[1], new_tokens=1536)
    for quantity in ("time_per_token", "time_to_first_token", "request_latency", "energy"):
        with pytest.raises(InputError, match=r"--extrapolate|power"):
            part_costs(profile, PARENT, longer, quantity)
    cost = part_costs(profile, PARENT, longer, "time_per_token", may_extrapolate=True).of_model(PARENT)
    intercept, mixer, ffn = _linear(decode_points(longer)[0])
    assert cost.value == pytest.approx(intercept + 2 * (mixer + ffn), rel=1e-6)
    assert cost.high > 1.1 * cost.value
    with pytest.raises(InputError, match="memory"):
        predict(profile, PARENT, longer, may_extrapolate=True)


def test_a_profile_without_one_parts_time_is_refused_by_name() -> None:
    profile = _profile(_at("slots", 64))
    lost = profile.times[0]
    with pytest.raises(InputError, match=f"no time of {lost.variant} as {lost.part}, {lost.format} on .* at batch 1"):
        _table(replace(profile, times=profile.times[1:]), lost.point)
