"""Predictions, from profiles made up so that every answer is known."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.session import make_cache
from blockwright.cost import MEASURED_QUANTITIES, UNIT_OF, Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import Backend, MemoryRow, Point, Profile, TimeRow, WholeRow
from blockwright.hw_profiles.provenance import AccuracyRow
from blockwright.profiler.cost_model import (
    all_part_costs,
    known_quantities,
    latency_of_throughput,
    part_costs,
    predict,
    throughput_of,
)
from blockwright.profiler.counted import exact_disk, exact_memory
from blockwright.profiler.measure import layer_names
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    Variant,
    stored_as,
    variant_name,
    with_format,
)

INT4 = Format(name="int4", group_size=32)
INT8 = Format(name="int8", group_size=32)
MIXERS = (Attention(num_kv_heads=4), Attention(num_kv_heads=2), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=128), GatedFFN(width=96), GatedFFN(width=32), LinearFFN(), NoOp())
LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
SHIPPED = read_profile(shipped_profiles()[0])
POWER = replace(SHIPPED.ceilings, busy_w=Figure(value=50.0, low=45.0, high=60.0, origin="measured", source="made up"))
TIMES: list[Quantity] = ["time_per_token", "time_to_first_token"]
ADDITIVE: list[Quantity] = [quantity for quantity in UNIT_OF if quantity != "throughput"]


def _model(layers: tuple[Block, ...] = (Block(mixer=MIXERS[0], ffn=FFNS[0]),) * 4, **changes: object) -> Model:
    return replace(
        Model(
            family="llama",
            vocab_size=96,
            hidden_size=64,
            num_heads=4,
            head_dim=32,
            max_positions=512,
            norm_eps=1e-5,
            rope=Rope(theta=1e4),
            activation="silu",
            has_tied_embeddings=True,
            has_qkv_bias=False,
            has_output_bias=False,
            has_ffn_bias=False,
            has_qk_norm=False,
            layers=layers,
        ),
        **changes,
    )


def _random_model(seed: int) -> Model:
    generator = random.Random(seed)
    return _model(tuple(Block(mixer=generator.choice(MIXERS), ffn=generator.choice(FFNS)) for _ in range(4)))


def _time_of(variant: Variant, point: Point) -> float:
    """Made up: grows with width, heads, tokens and slots."""
    match variant:
        case Attention(num_kv_heads=num_kv_heads):
            return 1e-6 * (20 + 5 * num_kv_heads + 0.1 * point.slots) * point.new_tokens
        case GatedFFN(width=width):
            return 1e-6 * (3 + 0.2 * width) * point.new_tokens
        case LinearMixer() | LinearFFN():
            return 2e-6 * point.new_tokens
        case NoOp():
            return 0.0


def _share_of(part: Variant) -> float:
    """Made up: what a part takes in a whole model, as a share of its time in fp32."""
    return 0.9 if not isinstance(part, NoOp) and part.weights == INT4 else 1.1


def _whole_time(model: Model, point: Point) -> float:
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    head_s = 30e-6 if model.embedding_weights == FP32 else 50e-6
    return head_s + sum(_share_of(part) * _time_of(part, point) for part in parts)


def _profile(
    points: list[Point], held_out_error: float = 0.0, backend: Backend = "onnxruntime", weights: Format = FP32
) -> Profile:
    times = [
        TimeRow(
            backend=backend,
            format=str(weights),
            part="mixer" if variant in MIXERS else "ffn",
            variant=variant_name(variant),
            point=point,
            time_s=_time_of(variant, point),
            low_s=0.0,
            high_s=1.0,
            num_samples=9,
            num_rejected=0,
            origin="measured",
        )
        for point in points
        for variant in (*MIXERS, *FFNS)
        if not isinstance(variant, NoOp)
    ]
    wholes = [
        WholeRow(
            backend=backend,
            format=str(weights),
            layers=layer_names(model),
            is_anchor=index < 3,
            point=point,
            time_s=_whole_time(with_format(model, weights), point) * (1 if index < 3 else 1 + held_out_error),
            low_s=0.0,
            high_s=1.0,
            num_samples=9,
            num_rejected=0,
            origin="measured",
        )
        for point in points
        for index, model in enumerate([_model(), *(_random_model(seed) for seed in range(5))])
    ]
    counted = int(exact_memory(with_format(_model(), weights), LOAD).of_model(with_format(_model(), weights)).value)
    memory = [
        MemoryRow(
            backend=backend,
            format=str(weights),
            batch=LOAD.batch,
            prompt_tokens=LOAD.prompt_tokens,
            new_tokens=LOAD.new_tokens,
            peak_bytes=counted + workspace,
            exact_bytes=counted,
            origin="measured",
        )
        for workspace in (90_000, 100_000)
    ]
    device = Device(vendor="none", model="made up", architecture="none", num_cores=1, memory_bytes=2**30, features=())
    return replace(
        SHIPPED,
        name="made-up",
        device=device,
        software={},
        model=_model(),
        times=tuple(times),
        wholes=tuple(wholes),
        memory=tuple(memory) if backend == "onnxruntime" else (),
        accuracy=(),
    )


def _in_both_formats(fp32_error: float = 0.0, int4_error: float = 0.0) -> Profile:
    profiles = [
        _profile(_measured_points(), held_out_error=error, weights=weights)
        for weights, error in ((FP32, fp32_error), (INT4, int4_error))
    ]
    return replace(
        profiles[0],
        times=tuple(row for profile in profiles for row in profile.times),
        wholes=tuple(row for profile in profiles for row in profile.wholes),
        memory=tuple(row for profile in profiles for row in profile.memory),
        ceilings=POWER,
    )


def _mixed(seed: int, head: Format) -> Model:
    """A random model whose parts differ in format: the first ffn is in fp32, the last one in int4."""
    generator, model = random.Random(seed), _random_model(seed)
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


def _measured_points() -> list[Point]:
    return [*decode_points(LOAD), *prefill_points(LOAD)]


@pytest.mark.parametrize("seed", range(5))
def test_the_cost_of_a_model_is_the_sum_of_its_parts(seed: int) -> None:
    model, profile = _random_model(seed), replace(_profile(_measured_points()), ceilings=POWER)
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
    model = _random_model(seed)
    costs = predict(_profile(_measured_points()), model, LOAD)
    (decode,), (prefill,) = decode_points(LOAD), prefill_points(LOAD)
    assert costs["time_per_token"].value == pytest.approx(_whole_time(model, decode), rel=1e-6)
    assert costs["time_to_first_token"].value == pytest.approx(_whole_time(model, prefill), rel=1e-6)
    assert costs["time_per_token"].origin == "modelled"


@pytest.mark.parametrize("error", [0.0, 0.05, 0.3, -0.3])
def test_the_interval_covers_every_held_out_model(error: float) -> None:
    profile = _profile(_measured_points(), held_out_error=error)
    cases: list[tuple[Quantity, Point]] = [
        ("time_per_token", decode_points(LOAD)[0]),
        ("time_to_first_token", prefill_points(LOAD)[0]),
    ]
    for index in range(3, 6):
        model = _random_model(index - 1)
        for quantity, point in cases:
            measured = _whole_time(model, point) * (1 + error)
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
    costs = predict(replace(_profile(_measured_points()), accuracy=(row,)), _random_model(1), LOAD)
    widths = {name: costs[name].high / costs[name].value - 1 for name in ("time_per_token", "time_to_first_token")}
    assert widths == pytest.approx({"time_per_token": 0.08, "time_to_first_token": 0.02})


def test_a_prompt_longer_than_a_chunk_costs_the_sum_of_its_chunks() -> None:
    load = Load(batch=1, prompt_tokens=600, new_tokens=8)
    points = prefill_points(load)
    assert [point.new_tokens for point in points] == [512, 88]
    assert {point.slots for point in points} == {640}
    cost = part_costs(_profile(points), _model(), load, "time_to_first_token").of_model(_model())
    assert cost.value == pytest.approx(sum(_whole_time(_model(), point) for point in points), rel=1e-6)


def test_an_interpolated_cost_is_marked() -> None:
    points = [Point(batch=1, new_tokens=1, slots=slots) for slots in (64, 256)]
    load = Load(batch=1, prompt_tokens=100, new_tokens=28)
    cost = part_costs(_profile(points), _model(), load, "time_per_token").of_model(_model())
    assert cost.origin == "modelled"
    assert cost.value == pytest.approx(_whole_time(_model(), decode_points(load)[0]), rel=1e-6)


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
        predict(_profile(_measured_points()), _model(), load)


def test_a_format_or_backend_that_was_not_measured_is_refused() -> None:
    profile = _profile(_measured_points())
    with pytest.raises(InputError, match="int4-g32"):
        predict(profile, with_format(_model(), INT4), LOAD)
    with pytest.raises(InputError, match="torch"):
        predict(profile, _model(), LOAD, "torch")


@pytest.mark.parametrize(("mixer", "ffn"), [(Attention(num_kv_heads=1), FFNS[0]), (MIXERS[0], GatedFFN(width=16))])
def test_a_variant_that_was_not_measured_is_refused(mixer: Attention, ffn: GatedFFN) -> None:
    model = _model((Block(mixer=mixer, ffn=ffn),))
    with pytest.raises(InputError, match="no time of"):
        predict(_profile(_measured_points()), model, LOAD)


def test_points_without_whole_models_are_refused() -> None:
    profile = replace(_profile(_measured_points()), wholes=())
    with pytest.raises(InputError, match="no anchor"):
        predict(profile, _model(), LOAD)


def test_a_profile_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="hidden_size"):
        predict(_profile(_measured_points()), _model(hidden_size=128), LOAD)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("own", [FP32, INT4])
def test_a_model_of_several_formats_costs_the_sum_of_its_parts(own: Format, seed: int) -> None:
    profile, child = _in_both_formats(int4_error=0.1), _mixed(seed, own)
    parent, other = with_format(_model(), own), INT4 if own == FP32 else FP32
    predicted = predict(profile, child, LOAD)
    for quantity in ADDITIVE:
        assert part_costs(profile, parent, LOAD, quantity, formats=[other]).of_model(child) == predicted[quantity]
    for quantity, point in zip(TIMES, (*decode_points(LOAD), *prefill_points(LOAD)), strict=True):
        cost = predicted[quantity]
        assert cost.value == pytest.approx(_whole_time(child, point), rel=1e-6)
        assert cost.origin == "modelled"
    counted = exact_memory(child, LOAD).of_model(child).value
    assert predicted["memory"].value == pytest.approx(counted + 100_000)


@pytest.mark.parametrize(("errors", "widest"), [((0.0, 0.25), 0.25), ((0.3, 0.1), 0.3)])
def test_the_interval_of_several_formats_is_the_widest(errors: tuple[float, float], widest: float) -> None:
    profile = _in_both_formats(*errors)
    for quantity in TIMES:
        cost = predict(profile, _mixed(0, FP32), LOAD)[quantity]
        assert cost.high / cost.value - 1 == pytest.approx(widest, rel=1e-6)
        own = predict(profile, _model(), LOAD)[quantity]
        offered = part_costs(profile, _model(), LOAD, quantity, formats=[INT4]).of_model(_model())
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
    profile, other = _in_both_formats(), _profile(_measured_points(), weights=INT8)
    slower = [replace(row, time_s=row.time_s + 10e-6) for row in other.wholes]
    profile = replace(profile, times=profile.times + other.times, wholes=profile.wholes + tuple(slower))
    layers = tuple(Block(mixer=NoOp(), ffn=stored_as(FFNS[0], weights)) for weights in of_parts)
    model = replace(with_format(_model(), INT4), layers=layers)
    costs = part_costs(profile, model, LOAD, "time_per_token", formats=given)
    assert costs.fixed.value == pytest.approx(head_s, rel=1e-6)


def test_layers_of_integers_under_a_plain_head_cost_what_that_head_does() -> None:
    model = replace(with_format(_model(), INT4), embedding_weights=FP32)
    costs = part_costs(_in_both_formats(), model, LOAD, "time_per_token")
    assert costs.fixed.value == pytest.approx(30e-6, rel=1e-6)
    assert costs.of_model(model).value == pytest.approx(_whole_time(model, decode_points(LOAD)[0]), rel=1e-6)


def test_a_part_in_a_format_that_was_not_asked_for_is_refused() -> None:
    costs = part_costs(_in_both_formats(), _model(), LOAD, "time_per_token")
    with pytest.raises(InputError) as caught:
        costs.of_ffn(stored_as(FFNS[0], INT4))
    assert caught.value.field == "profile made-up"
    assert caught.value.got == "no time of ffn-128 as ffn in int4-g32"
    assert caught.value.expected.endswith("one of the formats asked for: fp32")
    assert "Profile again" in caught.value.remedy


@pytest.mark.parametrize("quantity", ["time_per_token", "time_to_first_token", "request_latency", "memory"])
def test_a_format_that_parts_may_have_must_be_measured(quantity: Quantity) -> None:
    with pytest.raises(InputError, match="int4-g32"):
        part_costs(_profile(_measured_points()), _model(), LOAD, quantity, formats=[INT4])


def test_a_request_takes_its_first_token_and_then_the_others() -> None:
    costs = predict(_profile(_measured_points(), held_out_error=0.1), _random_model(1), LOAD)
    token, first, request = costs["time_per_token"], costs["time_to_first_token"], costs["request_latency"]
    for end in ("low", "value", "high"):
        assert getattr(request, end) == pytest.approx(getattr(first, end) + 23 * getattr(token, end), rel=1e-12)


def test_a_request_of_one_token_needs_no_decoding() -> None:
    load = replace(LOAD, new_tokens=1)
    profile = _profile(prefill_points(load))
    latency = part_costs(profile, _model(), load, "request_latency")
    first = part_costs(profile, _model(), load, "time_to_first_token")
    assert latency.of_model(_model()) == first.of_model(_model())


def test_throughput_counts_the_new_tokens_of_all_sequences() -> None:
    load = replace(LOAD, batch=3)
    points = [*decode_points(load), *prefill_points(load)]
    profile, model = _profile(points, held_out_error=0.1), _random_model(1)
    latency = part_costs(profile, model, load, "request_latency").of_model(model)
    throughput = throughput_of(load, latency)
    assert throughput.value == pytest.approx(3 * 24 / latency.value)
    assert throughput.low == pytest.approx(3 * 24 / latency.high)
    assert throughput.high == pytest.approx(3 * 24 / latency.low)
    assert latency_of_throughput(load, throughput.low) == pytest.approx(latency.high)
    assert predict(_profile(_measured_points()), model, LOAD)["throughput"] == throughput_of(
        LOAD, predict(_profile(_measured_points()), model, LOAD)["request_latency"]
    )


def test_throughput_is_no_sum_of_parts() -> None:
    with pytest.raises(ValueError, match="latency_of_throughput"):
        part_costs(_profile(_measured_points()), _model(), LOAD, "throughput")


def test_a_throughput_without_an_upper_end_is_not_told() -> None:
    costs = predict(_profile(_measured_points(), held_out_error=1.5), _model(), LOAD)
    assert costs["request_latency"].low < 0 < costs["request_latency"].value
    assert "throughput" not in costs
    with pytest.raises(ValueError, match="above 0"):
        throughput_of(LOAD, costs["request_latency"])


@pytest.mark.parametrize("batch", [1, 4])
def test_energy_is_what_a_sequence_takes_of_the_power(batch: int) -> None:
    load = replace(LOAD, batch=batch)
    profile = replace(_profile([*decode_points(load), *prefill_points(load)], held_out_error=0.1), ceilings=POWER)
    model = _random_model(1)
    energy = part_costs(profile, model, load, "energy").of_model(model)
    latency = part_costs(profile, model, load, "request_latency").of_model(model)
    assert energy.value == pytest.approx(50 * latency.value / batch)
    assert energy.low == pytest.approx(45 * latency.low / batch)
    assert energy.high == pytest.approx(60 * latency.high / batch)
    assert energy.origin == "modelled"


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_energy_without_power_is_unknown_and_not_nothing(backend: Backend) -> None:
    profile = _profile(_measured_points(), backend=backend)
    assert "energy" not in known_quantities(profile, backend)
    assert "energy" not in predict(profile, _model(), LOAD, backend)
    assert "energy" in known_quantities(replace(profile, ceilings=POWER), backend)
    with pytest.raises(InputError) as caught:
        part_costs(profile, _model(), LOAD, "energy", backend)
    assert (caught.value.field, caught.value.got) == ("profile made-up: ceilings.busy_w", "none")
    assert "counters" in caught.value.remedy and "power" in caught.value.expected


def test_promises_are_made_of_what_is_measured() -> None:
    profile = replace(_profile(_measured_points()), ceilings=POWER)
    assert tuple(all_part_costs(profile, _model(), LOAD)) == MEASURED_QUANTITIES
    in_torch = replace(_profile(_measured_points(), backend="torch"), ceilings=POWER)
    assert set(all_part_costs(in_torch, _model(), LOAD, "torch")) == set(MEASURED_QUANTITIES) - {"memory"}


def test_every_cost_grows_with_width() -> None:
    profile = _profile(_measured_points())
    costs = [predict(profile, _model((Block(mixer=NoOp(), ffn=ffn),)), LOAD) for ffn in reversed(FFNS[:3])]
    for narrow, wide in itertools.pairwise(costs):
        assert narrow["throughput"].value > wide["throughput"].value
        assert all(narrow[quantity].value < wide[quantity].value for quantity in narrow if quantity != "throughput")


def test_nothing_costs_nothing() -> None:
    profile = replace(_profile(_measured_points()), ceilings=POWER)
    for quantity in ADDITIVE:
        costs = part_costs(profile, _model(), LOAD, quantity)
        assert costs.of_mixer(NoOp()).value == costs.of_ffn(NoOp()).value == 0


@pytest.mark.parametrize("weights", [FP32, INT4])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_counted_memory_is_what_the_graph_and_its_cache_hold(weights: Format, is_tied: bool, seed: int) -> None:
    model = with_format(replace(_random_model(seed), has_tied_embeddings=is_tied), weights)
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
    model = _random_model(1)
    cost = predict(_profile(_measured_points()), model, LOAD)["memory"]
    counted = exact_memory(model, LOAD).of_model(model).value
    assert cost == Cost(value=counted + 100_000, low=counted + 90_000, high=counted + 110_000, origin="transferred")


def test_in_torch_times_and_parameters_are_predicted_and_memory_is_refused() -> None:
    profile = _profile(_measured_points(), backend="torch")
    costs = predict(profile, _model(), LOAD, "torch")
    assert set(costs) == set(UNIT_OF) - {"memory", "energy"}
    assert costs["time_per_token"].value == pytest.approx(_whole_time(_model(), decode_points(LOAD)[0]), rel=1e-6)
    with pytest.raises(InputError, match="memory"):
        part_costs(profile, _model(), LOAD, "memory", "torch")


def test_parameters_are_those_of_a_checkpoint() -> None:
    model = _random_model(2)
    count = sum(array.size for array in random_weights(model).values())
    assert predict(_profile(_measured_points()), model, LOAD)["parameters"].value == count


def test_a_model_in_a_format_costs_what_was_measured_in_it() -> None:
    profile = _profile(_measured_points(), weights=INT4)
    model = with_format(_random_model(3), INT4)
    assert predict(profile, model, LOAD)["time_per_token"].value == pytest.approx(
        _whole_time(model, decode_points(LOAD)[0]), rel=1e-6
    )
    assert np.isfinite(predict(profile, model, LOAD)["memory"].value)
