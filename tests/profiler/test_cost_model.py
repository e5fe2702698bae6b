"""Predictions, from profiles made up so that every answer is known."""

from dataclasses import replace

import pytest

from blockwright.cost import UNIT_OF, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Point
from blockwright.hw_profiles.provenance import AccuracyRow
from blockwright.profiler.cost_model import (
    part_costs,
    predict,
)
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.spec import (
    Attention,
    Block,
    GatedFFN,
    with_format,
)
from made_up_times import (
    ADDITIVE,
    FFNS,
    INT4,
    LOAD,
    MIXERS,
    POWER,
    measured_points,
    model_of,
    profile_of,
    random_model,
    whole_time,
)


@pytest.mark.parametrize("seed", range(5))
def test_the_cost_of_a_model_is_the_sum_of_its_parts(seed: int) -> None:
    model, profile = random_model(seed), replace(profile_of(measured_points()), ceilings=POWER)
    predicted = predict(profile, model, LOAD)
    assert list(predicted) == list(UNIT_OF)
    for quantity in ADDITIVE:
        cost, costs = predicted[quantity], part_costs(profile, model, LOAD, quantity)
        parts = [costs.fixed.value]
        parts += [costs.of_mixer(block.mixer).value for block in model.layers]
        parts += [costs.of_ffn(block.ffn).value for block in model.layers]
        assert cost.value == pytest.approx(sum(parts), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_times_that_add_up_are_predicted_exactly(seed: int) -> None:
    model = random_model(seed)
    costs = predict(profile_of(measured_points()), model, LOAD)
    (decode,), (prefill,) = decode_points(LOAD), prefill_points(LOAD)
    assert costs["time_per_token"].value == pytest.approx(whole_time(model, decode), rel=1e-6)
    assert costs["time_to_first_token"].value == pytest.approx(whole_time(model, prefill), rel=1e-6)
    assert costs["time_per_token"].origin == "modelled"


@pytest.mark.parametrize("error", [0.0, 0.05, 0.3, -0.3])
def test_the_interval_covers_every_held_out_model(error: float) -> None:
    profile = profile_of(measured_points(), held_out_error=error)
    cases: list[tuple[Quantity, Point]] = [
        ("time_per_token", decode_points(LOAD)[0]),
        ("time_to_first_token", prefill_points(LOAD)[0]),
    ]
    for index in range(3, 6):
        model = random_model(index - 1)
        for quantity, point in cases:
            measured = whole_time(model, point) * (1 + error)
            cost = part_costs(profile, model, LOAD, quantity).of_model(model)
            assert cost.low * (1 - 1e-9) <= measured <= cost.high * (1 + 1e-9)
            assert cost.high - cost.low >= 0.04 * cost.value * (1 - 1e-9)


def test_a_profile_that_was_tried_promises_no_better_than_it_did() -> None:
    row = AccuracyRow(
        quantity="time_per_token",
        format="fp32",
        phase="decode",
        num_held_out=32,
        mean_error=0.05,
        median_error=0.04,
        p90_error=0.08,
        worst_error=0.1,
        bias=0.0,
        kendall_tau=0.9,
        interval_coverage=0.5,
    )
    costs = predict(replace(profile_of(measured_points()), accuracy=(row,)), random_model(1), LOAD)
    widths = {name: costs[name].high / costs[name].value - 1 for name in ("time_per_token", "time_to_first_token")}
    assert widths == pytest.approx({"time_per_token": 0.08, "time_to_first_token": 0.02})


def test_a_prompt_longer_than_a_chunk_costs_the_sum_of_its_chunks() -> None:
    load = Load(batch=1, prompt_tokens=600, new_tokens=8)
    points = prefill_points(load)
    assert [point.new_tokens for point in points] == [512, 88]
    assert {point.slots for point in points} == {640}
    cost = part_costs(profile_of(points), model_of(), load, "time_to_first_token").of_model(model_of())
    assert cost.value == pytest.approx(sum(whole_time(model_of(), point) for point in points), rel=1e-6)


def test_an_interpolated_cost_is_marked() -> None:
    points = [Point(batch=1, new_tokens=1, slots=slots) for slots in (64, 256)]
    load = Load(batch=1, prompt_tokens=100, new_tokens=28)
    cost = part_costs(profile_of(points), model_of(), load, "time_per_token").of_model(model_of())
    assert cost.origin == "modelled"
    assert cost.value == pytest.approx(whole_time(model_of(), decode_points(load)[0]), rel=1e-6)


@pytest.mark.parametrize(
    "load",
    [
        Load(batch=1, prompt_tokens=40, new_tokens=200),
        Load(batch=2, prompt_tokens=40, new_tokens=24),
        Load(batch=1, prompt_tokens=50, new_tokens=14),
    ],
)
def test_a_load_outside_of_what_was_measured_is_refused(load: Load) -> None:
    with pytest.raises(InputError, match=r"point between measured ones.*batch 1, 1 to 40 .*64 slots.*--extrapolate"):
        predict(profile_of(measured_points()), model_of(), load)


def test_a_format_or_backend_that_was_not_measured_is_refused() -> None:
    profile = profile_of(measured_points())
    with pytest.raises(InputError, match="int4-g32"):
        predict(profile, with_format(model_of(), INT4), LOAD)
    with pytest.raises(InputError, match="torch"):
        predict(profile, model_of(), LOAD, "torch")


@pytest.mark.parametrize(("mixer", "ffn"), [(Attention(num_kv_heads=1), FFNS[0]), (MIXERS[0], GatedFFN(width=16))])
def test_a_variant_that_was_not_measured_is_refused(mixer: Attention, ffn: GatedFFN) -> None:
    model = model_of((Block(mixer=mixer, ffn=ffn),))
    with pytest.raises(InputError, match="no time of"):
        predict(profile_of(measured_points()), model, LOAD)


def test_points_without_whole_models_are_refused() -> None:
    profile = replace(profile_of(measured_points()), wholes=())
    with pytest.raises(InputError, match="no anchor"):
        predict(profile, model_of(), LOAD)


def test_a_profile_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="hidden_size"):
        predict(profile_of(measured_points()), model_of(hidden_size=128), LOAD)
