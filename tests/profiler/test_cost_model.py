"""Predictions, from profiles made up so that every answer is known."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.session import make_cache
from blockwright.cost import Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.profile import Backend, Ceilings, MemoryRow, Point, Profile, TimeRow, WholeRow
from blockwright.profiler.cost_model import decode_points, exact_memory, part_costs, predict, prefill_points, table_at
from blockwright.profiler.measure import layer_names
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
MIXERS = (Attention(num_kv_heads=4), Attention(num_kv_heads=2), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=128), GatedFFN(width=96), GatedFFN(width=32), LinearFFN(), NoOp())
LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)


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


def _whole_time(model: Model, point: Point) -> float:
    parts = sum(_time_of(part, point) for block in model.layers for part in (block.mixer, block.ffn))
    return 30e-6 + 1.1 * parts


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
            time_s=_whole_time(model, point) * (1 if index < 3 else 1 + held_out_error),
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
    return Profile(
        schema_version=1,
        name="made-up",
        device=device,
        software={},
        num_threads=1,
        created="2025-01-01T00:00:00+00:00",
        model=_model(),
        ceilings=Ceilings(read_bytes_per_s=1e10, fp32_flop_per_s=1e11, reference_s=2e-4),
        times=tuple(times),
        wholes=tuple(wholes),
        memory=tuple(memory) if backend == "onnxruntime" else (),
    )


def _measured_points() -> list[Point]:
    return [*decode_points(LOAD), *prefill_points(LOAD)]


@pytest.mark.parametrize("seed", range(5))
def test_the_cost_of_a_model_is_the_sum_of_its_parts(seed: int) -> None:
    model, profile = _random_model(seed), _profile(_measured_points())
    for quantity, cost in predict(profile, model, LOAD).items():
        costs = part_costs(profile, model, LOAD, quantity)
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


def test_a_prompt_longer_than_a_chunk_costs_the_sum_of_its_chunks() -> None:
    load = Load(batch=1, prompt_tokens=600, new_tokens=8)
    points = prefill_points(load)
    assert [point.new_tokens for point in points] == [512, 88]
    assert {point.slots for point in points} == {640}
    cost = part_costs(_profile(points), _model(), load, "time_to_first_token").of_model(_model())
    assert cost.value == pytest.approx(sum(_whole_time(_model(), point) for point in points), rel=1e-6)


@pytest.mark.parametrize("axis", ["slots", "new_tokens"])
def test_between_two_points_time_is_linear_and_says_so(axis: str) -> None:
    low, middle, high = (Point(**{"batch": 1, "new_tokens": 8, "slots": 128, axis: n}) for n in (64, 192, 320))
    profile = _profile([low, high])
    below, between, above = (table_at(profile, "onnxruntime", "fp32", point) for point in (low, middle, high))
    for key, time_s in between.parts_s.items():
        assert time_s == pytest.approx((below.parts_s[key] + above.parts_s[key]) / 2)
    assert between.intercept_s == pytest.approx((below.intercept_s + above.intercept_s) / 2)


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
    with pytest.raises(InputError, match="point between measured ones"):
        predict(_profile(_measured_points()), _model(), load)


def test_a_format_or_backend_that_was_not_measured_is_refused() -> None:
    profile = _profile(_measured_points())
    with pytest.raises(InputError, match="int4-g32"):
        predict(profile, with_format(_model(), INT4), LOAD)
    with pytest.raises(InputError, match="torch"):
        predict(profile, _model(), LOAD, "torch")


@pytest.mark.parametrize(("mixer", "ffn"), [(Attention(num_kv_heads=1), FFNS[0]), (MIXERS[0], GatedFFN(width=64))])
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


def test_layers_of_different_formats_are_refused() -> None:
    mixed = _model((Block(mixer=MIXERS[0], ffn=stored_as(FFNS[0], INT4)),))
    with pytest.raises(InputError, match="fp32, int4-g32"):
        part_costs(_profile(_measured_points()), mixed, LOAD, "time_per_token")


def test_every_cost_grows_with_width() -> None:
    profile = _profile(_measured_points())
    costs = [predict(profile, _model((Block(mixer=NoOp(), ffn=ffn),)), LOAD) for ffn in reversed(FFNS[:3])]
    for narrow, wide in itertools.pairwise(costs):
        assert all(narrow[quantity].value < wide[quantity].value for quantity in narrow)


def test_nothing_costs_nothing() -> None:
    profile = _profile(_measured_points())
    for quantity in predict(profile, _model(), LOAD):
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
    cache_bytes = sum(value.numpy().nbytes for value in make_cache(model, batch=3, slots=128).values())
    assert exact_memory(model, load).of_model(model).value == weight_bytes + cache_bytes


def test_memory_is_the_count_and_the_most_workspace_where_one_model_was_measured() -> None:
    model = _random_model(1)
    cost = predict(_profile(_measured_points()), model, LOAD)["memory"]
    counted = exact_memory(model, LOAD).of_model(model).value
    assert cost == Cost(value=counted + 100_000, low=counted + 90_000, high=counted + 110_000, origin="transferred")


def test_memory_at_a_load_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="memory"):
        part_costs(_profile(_measured_points()), _model(), replace(LOAD, new_tokens=23), "memory")


def test_in_torch_times_and_parameters_are_predicted_and_memory_is_refused() -> None:
    profile = _profile(_measured_points(), backend="torch")
    costs = predict(profile, _model(), LOAD, "torch")
    assert list(costs) == ["time_per_token", "time_to_first_token", "parameters"]
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


def test_memory_beyond_the_count_is_a_line_through_the_measured_models() -> None:
    profile = _profile(_measured_points())
    counted = exact_memory(_model(), LOAD).of_model(_model()).value
    row = profile.memory[0]
    sizes = [int(counted), int(counted) // 2, int(counted) // 4]
    rows = [replace(row, exact_bytes=size, peak_bytes=round(size * 1.25) + 70_000) for size in sizes]
    cost = predict(replace(profile, memory=tuple(rows)), _model(), LOAD)["memory"]
    assert cost.value == pytest.approx(counted * 1.25 + 70_000, rel=1e-4)
    assert cost.high - cost.value < 10, "the models lie on a line"

    bent = [*rows[:2], replace(rows[2], peak_bytes=rows[2].peak_bytes + 5_000)]
    cost = predict(replace(profile, memory=tuple(bent)), _model(), LOAD)["memory"]
    assert cost.high - cost.value >= 5_000, "the interval must cover a model that the line misses"
