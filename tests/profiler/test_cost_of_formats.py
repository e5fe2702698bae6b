"""What a model of several formats costs."""

import random
from dataclasses import replace

import numpy as np
import pytest

from blockwright.cost import Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.profiler.cost_model import (
    part_costs,
    predict,
)
from blockwright.profiler.counted import exact_memory
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.spec import (
    FP32,
    Block,
    Format,
    Model,
    NoOp,
    stored_as,
    with_format,
)
from made_up_times import (
    ADDITIVE,
    FFNS,
    INT4,
    LOAD,
    POWER,
    measured_points,
    model_of,
    profile_of,
    random_model,
    whole_time,
)

INT8 = Format(name="int8", group_size=32)
TIMES: list[Quantity] = ["time_per_token", "time_to_first_token"]


def in_both_formats(fp32_error: float = 0.0, int4_error: float = 0.0) -> Profile:
    profiles = [
        profile_of(measured_points(), held_out_error=error, weights=weights)
        for weights, error in ((FP32, fp32_error), (INT4, int4_error))
    ]
    return replace(
        profiles[0],
        times=tuple(row for profile in profiles for row in profile.times),
        wholes=tuple(row for profile in profiles for row in profile.wholes),
        memory=tuple(row for profile in profiles for row in profile.memory),
        ceilings=POWER,
    )


def mixed_model(seed: int, head: Format) -> Model:
    """A random model whose parts differ in format: the first ffn is in fp32, the last one in int4."""
    generator, model = random.Random(seed), random_model(seed)
    layers = [
        Block(
            mixer=stored_as(block.mixer, generator.choice((FP32, INT4))),
            ffn=stored_as(block.ffn, generator.choice((FP32, INT4))),
        )
        for block in model.layers
    ]
    layers[0] = replace(layers[0], ffn=FFNS[1])
    layers[-1] = replace(layers[-1], ffn=stored_as(FFNS[0], INT4))
    return replace(with_format(model, head), layers=tuple(layers))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("own", [FP32, INT4])
def test_a_model_of_several_formats_costs_the_sum_of_its_parts(own: Format, seed: int) -> None:
    profile, child = in_both_formats(int4_error=0.1), mixed_model(seed, own)
    parent, other = with_format(model_of(), own), INT4 if own == FP32 else FP32
    predicted = predict(profile, child, LOAD)
    for quantity in ADDITIVE:
        assert part_costs(profile, parent, LOAD, quantity, formats=[other]).of_model(child) == predicted[quantity]
    for quantity, point in zip(TIMES, (*decode_points(LOAD), *prefill_points(LOAD)), strict=True):
        cost = predicted[quantity]
        assert cost.value == pytest.approx(whole_time(child, point), rel=1e-6)
        assert cost.origin == "modelled"
    counted = exact_memory(child, LOAD).of_model(child).value
    assert predicted["memory"].value == pytest.approx(counted + 100_000)


@pytest.mark.parametrize(("errors", "widest"), [((0.0, 0.25), 0.25), ((0.3, 0.1), 0.3)])
def test_the_interval_of_several_formats_is_the_widest(errors: tuple[float, float], widest: float) -> None:
    profile = in_both_formats(*errors)
    for quantity in TIMES:
        cost = predict(profile, mixed_model(0, FP32), LOAD)[quantity]
        assert cost.high / cost.value - 1 == pytest.approx(widest, rel=1e-6)
        own = predict(profile, model_of(), LOAD)[quantity]
        offered = part_costs(profile, model_of(), LOAD, quantity, formats=[INT4]).of_model(model_of())
        assert (own.value, own.high / own.value - 1) == (offered.value, pytest.approx(max(0.02, errors[0]), rel=1e-6))
        assert offered.high / offered.value - 1 == pytest.approx(widest, rel=1e-6)


@pytest.mark.parametrize(
    ("of_parts", "given", "head_s"),
    [
        ((INT4, INT4, INT8), (), 50e-6),
        ((INT4, INT8, INT8), (), 60e-6),
        ((INT4, INT8), (INT8,), 50e-6),  # as many of both: the first by name
        ((FP32,), (INT8,), 60e-6),
        ((), (INT8, INT4), 60e-6),
        ((), (), 50e-6),  # any integer format stands for the head
    ],
)
def test_an_integer_head_costs_what_it_does_in_models_of_integers(
    of_parts: tuple[Format, ...], given: tuple[Format, ...], head_s: float
) -> None:
    profile, other = in_both_formats(), profile_of(measured_points(), weights=INT8)
    slower = [replace(row, time_s=row.time_s + 10e-6) for row in other.wholes]
    profile = replace(profile, times=profile.times + other.times, wholes=profile.wholes + tuple(slower))
    layers = tuple(Block(mixer=NoOp(), ffn=stored_as(FFNS[0], weights)) for weights in of_parts)
    model = replace(with_format(model_of(), INT4), layers=layers)
    costs = part_costs(profile, model, LOAD, "time_per_token", formats=given)
    assert costs.fixed.value == pytest.approx(head_s, rel=1e-6)


@pytest.mark.parametrize(
    ("embedding", "head", "head_s"),
    [(INT8, FP32, 30e-6), (INT4, FP32, 30e-6), (FP32, INT4, 50e-6), (FP32, INT8, 50e-6)],
)
def test_a_head_of_its_own_costs_what_its_format_does(embedding: Format, head: Format, head_s: float) -> None:
    model = replace(with_format(model_of(), INT4), embedding_weights=embedding, head_weights=head)
    costs = part_costs(in_both_formats(), model, LOAD, "time_per_token")
    assert costs.fixed.value == pytest.approx(head_s, rel=1e-6)


def test_a_head_of_its_own_that_no_model_was_measured_with_is_refused() -> None:
    model = replace(model_of(layers=()), head_weights=INT8)
    with pytest.raises(InputError, match="int8-g32"):
        part_costs(profile_of(measured_points()), model, LOAD, "time_per_token")


def test_layers_of_integers_under_a_plain_head_cost_what_that_head_does() -> None:
    model = replace(with_format(model_of(), INT4), embedding_weights=FP32)
    costs = part_costs(in_both_formats(), model, LOAD, "time_per_token")
    assert costs.fixed.value == pytest.approx(30e-6, rel=1e-6)
    assert costs.of_model(model).value == pytest.approx(whole_time(model, decode_points(LOAD)[0]), rel=1e-6)


def test_a_part_in_a_format_that_was_not_asked_for_is_refused() -> None:
    costs = part_costs(in_both_formats(), model_of(), LOAD, "time_per_token")
    with pytest.raises(InputError) as caught:
        costs.of_ffn(stored_as(FFNS[0], INT4))
    assert caught.value.field == "profile made-up"
    assert caught.value.got == "no time of ffn-128 as ffn in int4-g32"
    assert caught.value.expected.endswith("one of the formats asked for: fp32")
    assert "Profile again" in caught.value.remedy


@pytest.mark.parametrize("quantity", ["time_per_token", "time_to_first_token", "request_latency", "memory"])
def test_a_format_that_parts_may_have_must_be_measured(quantity: Quantity) -> None:
    with pytest.raises(InputError, match="int4-g32"):
        part_costs(profile_of(measured_points()), model_of(), LOAD, quantity, formats=[INT4])


def test_a_model_in_a_format_costs_what_was_measured_in_it() -> None:
    profile = profile_of(measured_points(), weights=INT4)
    model = with_format(random_model(3), INT4)
    assert predict(profile, model, LOAD)["time_per_token"].value == pytest.approx(
        whole_time(model, decode_points(LOAD)[0]), rel=1e-6
    )
    assert np.isfinite(predict(profile, model, LOAD)["memory"].value)
