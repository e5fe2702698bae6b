"""Requests, throughput, energy, memory and parameters."""

import itertools
from dataclasses import replace

import pytest
from onnx import numpy_helper

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.session import make_cache
from blockwright.cost import MEASURED_QUANTITIES, UNIT_OF, Cost, Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend
from blockwright.profiler.cost_model import (
    all_part_costs,
    known_quantities,
    latency_of_throughput,
    part_costs,
    predict,
    throughput_of,
)
from blockwright.profiler.counted import exact_disk, exact_memory
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import (
    FP32,
    Block,
    Format,
    NoOp,
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


def test_a_request_takes_its_first_token_and_then_the_others() -> None:
    costs = predict(profile_of(measured_points(), held_out_error=0.1), random_model(1), LOAD)
    token, first, request = costs["time_per_token"], costs["time_to_first_token"], costs["request_latency"]
    for end in ("low", "value", "high"):
        assert getattr(request, end) == pytest.approx(getattr(first, end) + 23 * getattr(token, end), rel=1e-12)


def test_a_request_of_one_token_needs_no_decoding() -> None:
    load = replace(LOAD, new_tokens=1)
    profile = profile_of(prefill_points(load))
    latency = part_costs(profile, model_of(), load, "request_latency")
    first = part_costs(profile, model_of(), load, "time_to_first_token")
    assert latency.of_model(model_of()) == first.of_model(model_of())


def test_throughput_counts_the_new_tokens_of_all_sequences() -> None:
    load = replace(LOAD, batch=3)
    points = [*decode_points(load), *prefill_points(load)]
    profile, model = profile_of(points, held_out_error=0.1), random_model(1)
    latency = part_costs(profile, model, load, "request_latency").of_model(model)
    throughput = throughput_of(load, latency)
    assert throughput.value == pytest.approx(3 * 24 / latency.value)
    assert throughput.low == pytest.approx(3 * 24 / latency.high)
    assert throughput.high == pytest.approx(3 * 24 / latency.low)
    assert latency_of_throughput(load, throughput.low) == pytest.approx(latency.high)
    assert predict(profile_of(measured_points()), model, LOAD)["throughput"] == throughput_of(
        LOAD, predict(profile_of(measured_points()), model, LOAD)["request_latency"]
    )


def test_throughput_is_no_sum_of_parts() -> None:
    with pytest.raises(ValueError, match="latency_of_throughput"):
        part_costs(profile_of(measured_points()), model_of(), LOAD, "throughput")


def test_a_throughput_without_an_upper_end_is_not_told() -> None:
    costs = predict(profile_of(measured_points(), held_out_error=1.5), model_of(), LOAD)
    assert costs["request_latency"].low < 0 < costs["request_latency"].value
    assert "throughput" not in costs
    with pytest.raises(ValueError, match="above 0"):
        throughput_of(LOAD, costs["request_latency"])


@pytest.mark.parametrize("batch", [1, 4])
def test_energy_is_what_a_sequence_takes_of_the_power(batch: int) -> None:
    load = replace(LOAD, batch=batch)
    profile = replace(profile_of([*decode_points(load), *prefill_points(load)], held_out_error=0.1), ceilings=POWER)
    model = random_model(1)
    energy = part_costs(profile, model, load, "energy").of_model(model)
    latency = part_costs(profile, model, load, "request_latency").of_model(model)
    assert energy.value == pytest.approx(50 * latency.value / batch)
    assert energy.low == pytest.approx(45 * latency.low / batch)
    assert energy.high == pytest.approx(60 * latency.high / batch)
    assert energy.origin == "modelled"


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_energy_without_power_is_unknown_and_not_nothing(backend: Backend) -> None:
    profile = profile_of(measured_points(), backend=backend)
    assert "energy" not in known_quantities(profile, backend)
    assert "energy" not in predict(profile, model_of(), LOAD, backend)
    assert "energy" in known_quantities(replace(profile, ceilings=POWER), backend)
    with pytest.raises(InputError) as caught:
        part_costs(profile, model_of(), LOAD, "energy", backend)
    assert (caught.value.field, caught.value.got) == ("profile made-up: ceilings.busy_w", "none")
    assert "counters" in caught.value.remedy and "power" in caught.value.expected


def test_promises_are_made_of_what_is_measured() -> None:
    profile = replace(profile_of(measured_points()), ceilings=POWER)
    assert tuple(all_part_costs(profile, model_of(), LOAD)) == MEASURED_QUANTITIES
    in_torch = replace(profile_of(measured_points(), backend="torch"), ceilings=POWER)
    assert set(all_part_costs(in_torch, model_of(), LOAD, "torch")) == set(MEASURED_QUANTITIES) - {"memory"}


def test_every_cost_grows_with_width() -> None:
    profile = profile_of(measured_points())
    costs = [predict(profile, model_of((Block(mixer=NoOp(), ffn=ffn),)), LOAD) for ffn in reversed(FFNS[:3])]
    for narrow, wide in itertools.pairwise(costs):
        assert narrow["throughput"].value > wide["throughput"].value
        assert all(narrow[quantity].value < wide[quantity].value for quantity in narrow if quantity != "throughput")


def test_nothing_costs_nothing() -> None:
    profile = replace(profile_of(measured_points()), ceilings=POWER)
    for quantity in ADDITIVE:
        costs = part_costs(profile, model_of(), LOAD, quantity)
        assert costs.of_mixer(NoOp()).value == costs.of_ffn(NoOp()).value == 0


@pytest.mark.parametrize("weights", [FP32, INT4])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_counted_memory_is_what_the_graph_and_its_cache_hold(weights: Format, is_tied: bool, seed: int) -> None:
    model = with_format(replace(random_model(seed), has_tied_embeddings=is_tied), weights)
    load = Load(batch=3, prompt_tokens=70, new_tokens=10)
    graph = decoder_graph(model, random_weights(model), num_positions=80).graph
    stored = [
        tensor
        for tensor in graph.initializer
        if tensor.name not in ("cosines", "sines", "one") and not tensor.name.startswith("shape_")
    ]
    bits = {"int4": 4}
    arrays = [numpy_helper.to_array(tensor) for tensor in stored]
    weight_bytes = sum(array.size * bits.get(str(array.dtype), 8 * array.dtype.itemsize) // 8 for array in arrays)
    cache_bytes = sum(array.nbytes for array in make_cache(model, batch=3, slots=128).values())
    assert exact_disk(model).of_model(model).value == weight_bytes
    assert exact_memory(model, load).of_model(model).value == weight_bytes + cache_bytes


def test_memory_is_the_count_and_the_most_workspace_where_one_model_was_measured() -> None:
    model = random_model(1)
    cost = predict(profile_of(measured_points()), model, LOAD)["memory"]
    counted = exact_memory(model, LOAD).of_model(model).value
    assert cost == Cost(value=counted + 100_000, low=counted + 90_000, high=counted + 110_000, origin="transferred")


def test_in_torch_times_and_parameters_are_predicted_and_memory_is_refused() -> None:
    profile = profile_of(measured_points(), backend="torch")
    costs = predict(profile, model_of(), LOAD, "torch")
    assert set(costs) == set(UNIT_OF) - {"memory", "energy"}
    assert costs["time_per_token"].value == pytest.approx(whole_time(model_of(), decode_points(LOAD)[0]), rel=1e-6)
    with pytest.raises(InputError, match="memory"):
        part_costs(profile, model_of(), LOAD, "memory", "torch")


def test_parameters_are_those_of_a_checkpoint() -> None:
    model = random_model(2)
    count = sum(array.size for array in random_weights(model).values())
    assert predict(profile_of(measured_points()), model, LOAD)["parameters"].value == count
