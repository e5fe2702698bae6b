"""Costs as sums over operators, from rows made up so that every answer is known."""

from dataclasses import asdict, replace

import pytest

from blockwright.cost import UNIT_OF, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import OperatorKind, OperatorRow, Point, Profile, parent_of
from blockwright.profiler.cost_model import known_quantities, part_costs, predict
from blockwright.profiler.counted import exact_memory
from blockwright.profiler.operators import (
    Attend,
    Elementwise,
    Matmul,
    Operator,
    ffn_operators,
    mixer_operators,
    shared_operators,
)
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.spec import FFN, Attention, Block, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp

SHIPPED = read_profile(measured_profiles()[0])
MODEL = replace(
    parent_of(SHIPPED),
    hidden_size=256,
    num_heads=8,
    head_dim=32,
    vocab_size=512,
    layers=(Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=512)),) * 3,
)
LOAD = Load(batch=1, prompt_tokens=600, new_tokens=40)
MIXERS: list[Mixer] = [*(Attention(num_kv_heads=heads) for heads in (4, 2, 1)), LinearMixer()]
FFNS: list[FFN] = [*(GatedFFN(width=width) for width in (512, 256, 128)), LinearFFN()]
POINTS = [*prefill_points(LOAD), *decode_points(LOAD)]
LAUNCH_S = SHIPPED.ceilings.launch_s.value


def _kind(operator: Operator) -> OperatorKind:
    match operator:
        case Matmul():
            return "matmul"
        case Attend():
            return "attend"
        case Elementwise():
            return "elementwise"


def _time(operator: Operator) -> float:
    """Made up: slower than the ceilings of the shipped profile."""
    return 2e-6 + operator.flop / 30e9 + operator.num_bytes / 8e9


def _operators(model: Model = MODEL) -> list[Operator]:
    mixers = [each for mixer in MIXERS for p in POINTS for each in mixer_operators(model, mixer, p)]
    ffns = [each for ffn in FFNS for p in POINTS for each in ffn_operators(model, ffn, p)]
    return list(dict.fromkeys([*mixers, *ffns, *(each for p in POINTS for each in shared_operators(model, p))]))


def _row(operator: Operator) -> OperatorRow:
    time_s = _time(operator)
    return OperatorRow(
        backend="onnxruntime",
        kind=_kind(operator),
        fields=asdict(operator),
        time_s=time_s,
        low_s=time_s,
        high_s=time_s,
        num_samples=9,
        num_rejected=0,
        origin="measured",
    )


def _device() -> Profile:
    """Of a device: operators, and no parent."""
    rows = tuple(_row(operator) for operator in _operators())
    return replace(SHIPPED, name="device", model=None, times=(), wholes=(), memory=(), operators=rows)


DEVICE = _device()


def test_a_model_takes_the_sum_of_its_operators_and_a_further_launch_for_each_elementwise_one() -> None:
    cases: list[tuple[Quantity, list[Point]]] = [
        ("time_to_first_token", prefill_points(LOAD)),
        ("time_per_token", decode_points(LOAD)),
    ]
    for quantity, points in cases:
        naive = 0.0
        for point in points:
            operators = list(shared_operators(MODEL, point))
            for block in MODEL.layers:
                operators += [*mixer_operators(MODEL, block.mixer, point), *ffn_operators(MODEL, block.ffn, point)]
            naive += sum(_time(operator) + LAUNCH_S * isinstance(operator, Elementwise) for operator in operators)
        cost = part_costs(DEVICE, MODEL, LOAD, quantity).of_model(MODEL)
        assert cost.value == pytest.approx(naive, rel=1e-6)
        assert cost.origin == "transferred"


def test_intervals_of_the_operators_show_in_the_cost() -> None:
    rows = tuple(replace(row, low_s=0.9 * row.time_s, high_s=1.2 * row.time_s) for row in DEVICE.operators)
    exactly, widely = (
        part_costs(device, MODEL, LOAD, "time_per_token").of_ffn(FFNS[0])
        for device in (DEVICE, replace(DEVICE, operators=rows))
    )
    points = decode_points(LOAD)
    timed_s = sum(_time(each) for point in points for each in ffn_operators(MODEL, FFNS[0], point))
    assert exactly.low - widely.low == pytest.approx(0.1 * timed_s)
    assert widely.high - exactly.high == pytest.approx(0.2 * timed_s)


def test_a_width_between_is_foretold_with_an_interval_and_beyond_it_is_modelled() -> None:
    costs = part_costs(DEVICE, MODEL, LOAD, "time_per_token")
    between, beyond = costs.of_ffn(GatedFFN(width=384)), costs.of_ffn(GatedFFN(width=8192))
    naive = sum(_time(each) for each in ffn_operators(MODEL, GatedFFN(width=384), decode_points(LOAD)[0]))
    assert between.value == pytest.approx(naive, rel=0.25)
    assert between.low < between.value < between.high
    assert (between.origin, beyond.origin) == ("transferred", "modelled")


def test_all_but_energy_is_told_where_the_power_is_not_known() -> None:
    assert set(predict(DEVICE, MODEL, LOAD)) == set(UNIT_OF) - {"energy"}
    with pytest.raises(InputError, match="busy_w"):
        part_costs(DEVICE, MODEL, LOAD, "energy")
    busy = Figure(value=50.0, low=45.0, high=60.0, origin="measured", source="made up")
    powered = replace(DEVICE, ceilings=replace(DEVICE.ceilings, busy_w=busy))
    costs = predict(powered, MODEL, LOAD)
    assert costs["energy"].value == pytest.approx(50 * costs["request_latency"].value)


def test_memory_is_counted_and_a_workspace_that_is_not_nothing() -> None:
    memory = part_costs(DEVICE, MODEL, LOAD, "memory")
    counted = exact_memory(MODEL, LOAD)
    beyond = memory.of_model(MODEL).low - counted.of_model(MODEL).value
    assert memory.of_ffn(FFNS[0]) == counted.of_ffn(FFNS[0])
    assert 0 < beyond < memory.fixed.value - counted.fixed.value < memory.fixed.high - counted.fixed.value
    assert memory.fixed.origin == "modelled"
    assert "memory" in known_quantities(DEVICE, "torch")


def test_a_parents_profile_with_operators_tells_of_other_shapes_as_well() -> None:
    both = replace(DEVICE, model=SHIPPED.model, times=SHIPPED.times, wholes=SHIPPED.wholes, memory=SHIPPED.memory)
    assert predict(both, MODEL, LOAD) == predict(DEVICE, MODEL, LOAD)
    load, parent = Load(batch=1, prompt_tokens=128, new_tokens=128), parent_of(SHIPPED)
    assert predict(both, parent, load) == predict(SHIPPED, parent, load)


def test_nothing_costs_nothing_and_another_backend_is_refused() -> None:
    costs = part_costs(DEVICE, MODEL, LOAD, "time_per_token")
    assert costs.of_mixer(NoOp()).value == costs.of_ffn(NoOp()).value == 0
    with pytest.raises(InputError, match="measured"):
        part_costs(DEVICE, MODEL, LOAD, "time_per_token", "torch")


def test_a_profile_of_blocks_alone_is_refused_for_another_shape() -> None:
    with pytest.raises(InputError, match="hidden_size"):
        predict(SHIPPED, MODEL, LOAD)
