"""Costs by a datasheet, against the server that they are a sum for."""

import math
from dataclasses import replace

import pytest

from blockwright.cost import MEASURED_QUANTITIES, UNIT_OF, Load, Quantity, product
from blockwright.count import kv_bytes_per_slot
from blockwright.errors import InputError
from blockwright.hw_profiles.datasheet_figures import known_devices
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import Backend, parent_of
from blockwright.profiler.cost_model import all_part_costs, known_quantities, part_costs, predict, throughput_of
from blockwright.profiler.counted import exact_disk
from blockwright.profiler.served_costs import decode_phase, prefill_phase, runtime_of, storage_of
from blockwright.profiler.serving import Server, power_of, step_use
from blockwright.profiler.serving_operators import Step
from blockwright.profiler.serving_runtimes import EAGER
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    parse_format,
    with_format,
)

MODEL = parent_of(read_profile(measured_profiles()[0]))
LARGE = replace(
    MODEL,
    hidden_size=2048,
    num_heads=16,
    head_dim=128,
    vocab_size=32000,
    layers=(Block(mixer=Attention(num_kv_heads=8), ffn=GatedFFN(width=8192)),) * 16,
)
LOAD = Load(batch=4, prompt_tokens=300, new_tokens=101)
TIMES: tuple[Quantity, Quantity] = ("time_per_token", "time_to_first_token")
ADDITIVE: list[Quantity] = [quantity for quantity in UNIT_OF if quantity != "throughput"]
CHILD_LAYERS = (
    Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=4096)),
    Block(mixer=LinearMixer(), ffn=LinearFFN()),
) * 8


def _server(name: str, backend: Backend, model: Model, weights: str) -> Server:
    profile = read_profile(name)
    runtime, _ = runtime_of(profile, backend)
    return Server(model=model, ceilings=profile.ceilings, runtime=runtime, storage=storage_of(parse_format(weights)))


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int4-g128"])
@pytest.mark.parametrize("name", ["h100_sxm", "jetson_agx_orin", "apple_m2", "raspberry_pi_5"])
@pytest.mark.parametrize("layers", [LARGE.layers, CHILD_LAYERS])
def test_the_sum_of_parts_is_the_step_of_the_server(name: str, weights: str, layers: tuple[Block, ...]) -> None:
    profile, parent = read_profile(name), with_format(LARGE, parse_format(weights))
    if parent.embedding_weights.group_size is not None:  # the server keeps its head as it keeps its layers
        parent = replace(parent, embedding_weights=parse_format(weights))
    child = with_format(replace(parent, layers=layers), parse_format(weights))
    server = _server(name, "onnxruntime", child, weights)
    writing = step_use(server, Step(sequences=4, context=350)).time_s
    reading = step_use(server, Step(sequences=0, context=0, prompts=4, prompt_tokens=300)).time_s
    child = replace(child, embedding_weights=parent.embedding_weights)
    token, first = (part_costs(profile, parent, LOAD, quantity).of_model(child) for quantity in TIMES)
    assert (token.value, first.value) == (pytest.approx(writing, rel=1e-9), pytest.approx(reading, rel=1e-9))


@pytest.mark.parametrize("model", [MODEL, replace(LARGE, layers=LARGE.layers * 4)])
def test_an_eager_runtime_takes_what_its_server_does_around_the_parent(model: Model) -> None:
    load = replace(LOAD, batch=64, prompt_tokens=4000)
    server = _server("rtx_4090", "torch", model, "fp32")
    assert server.runtime == EAGER
    writing = Step(sequences=64, context=4050)
    reading = Step(sequences=0, context=0, prompts=64, prompt_tokens=4000)
    for step, quantity in zip((writing, reading), TIMES, strict=True):
        cost = part_costs(read_profile("rtx_4090"), model, load, quantity, "torch").of_model(model)
        assert cost.value == pytest.approx(step_use(server, step).time_s, rel=1e-9)


@pytest.mark.parametrize("name", ["b200_sxm", "jetson_orin_nx", "raspberry_pi_5"])
def test_the_power_is_the_servers_around_the_parent(name: str) -> None:
    server, model = _server(name, "onnxruntime", LARGE, "fp32"), with_format(LARGE, parse_format("fp32"))
    phases = [
        (decode_phase, Step(sequences=4, context=350)),
        (prefill_phase, Step(sequences=0, context=0, prompts=4, prompt_tokens=300)),
    ]
    for phase, step in phases:
        found = phase(read_profile(name), "onnxruntime", model, LOAD)
        power, time = found.power_w, found.times.of_model(model)
        assert power is not None
        assert power.value == pytest.approx(power_of(server, step_use(server, step)), rel=1e-9)
        energy, bounds = product(power, time), server.runtime.energy_bounds
        assert energy.low <= energy.value * math.exp(bounds.low) * (1 + 1e-9)
        assert energy.high >= energy.value * math.exp(bounds.high) * (1 - 1e-9)


@pytest.mark.parametrize("name", known_devices())
def test_all_is_told_of_every_device_and_nothing_is_sure_or_free(name: str) -> None:
    profile, parent = read_profile(name), with_format(MODEL, parse_format("fp32"))
    costs = predict(profile, parent, LOAD)
    assert set(costs) == set(UNIT_OF) == set(known_quantities(profile))
    for quantity, cost in costs.items():
        assert 0 < cost.low <= cost.value <= cost.high < math.inf
        if quantity not in ("disk", "parameters"):
            assert cost.origin == "modelled" and cost.low < cost.value < cost.high
    assert costs["throughput"] == throughput_of(LOAD, costs["request_latency"])
    assert set(all_part_costs(profile, parent, LOAD)) == set(MEASURED_QUANTITIES)


@pytest.mark.parametrize("quantity", ADDITIVE)
@pytest.mark.parametrize("name", ["h100_pcie", "jetson_agx_thor", "intel_n100"])
def test_costs_fall_with_what_is_left_out_and_nothing_costs_nothing(name: str, quantity: Quantity) -> None:
    costs = part_costs(read_profile(name), LARGE, LOAD, quantity)
    assert costs.of_mixer(NoOp()).value == costs.of_ffn(NoOp()).value == 0
    assert 0 < costs.of_ffn(GatedFFN(width=2048)).value < costs.of_ffn(GatedFFN(width=8192)).value
    assert 0 < costs.of_mixer(Attention(num_kv_heads=1)).value < costs.of_mixer(Attention(num_kv_heads=16)).value


def test_a_request_takes_its_first_token_and_then_the_others() -> None:
    costs = predict(read_profile("l40s"), LARGE, LOAD)
    expected = costs["time_to_first_token"].value + 100 * costs["time_per_token"].value
    assert costs["request_latency"].value == pytest.approx(expected)


def test_energy_is_each_phase_at_its_own_power() -> None:
    profile = read_profile("l40s")
    prefill, decode = (phase(profile, "onnxruntime", LARGE, LOAD) for phase in (prefill_phase, decode_phase))
    assert prefill.power_w is not None and decode.power_w is not None
    first = prefill.times.of_model(LARGE).value * prefill.power_w.value
    token = decode.times.of_model(LARGE).value * decode.power_w.value
    energy = predict(profile, LARGE, LOAD)["energy"]
    assert energy.value == pytest.approx((first + 100 * token) / 4)
    one = predict(profile, LARGE, replace(LOAD, new_tokens=1))["energy"]
    assert one.value == pytest.approx(first / 4, rel=1e-6)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8-g32"])
def test_memory_is_weights_caches_and_a_workspace_that_is_not_nothing(weights: str) -> None:
    model = with_format(LARGE, parse_format(weights))
    memory = part_costs(read_profile("a100_sxm"), model, LOAD, "memory")
    layer = model.layers[0]
    value_bytes = 4 if weights == "fp32" else 2
    cached = 4 * 448 * kv_bytes_per_slot(model, layer.mixer, value_bytes)  # 401 tokens take 448 slots
    assert memory.of_mixer(layer.mixer).value == exact_disk(model).of_mixer(layer.mixer).value + cached
    assert memory.of_ffn(layer.ffn) == exact_disk(model).of_ffn(layer.ffn)
    table = model.vocab_size * model.hidden_size * value_bytes
    assert memory.fixed.low - table > 0.4e9 and memory.fixed.value - table > 3.5e9


def test_weights_in_16_bit_are_read_in_half_the_time() -> None:
    costs = {
        weights: predict(read_profile("jetson_agx_orin"), with_format(LARGE, parse_format(weights)), LOAD)
        for weights in ("fp32", "bf16", "int4-g32")
    }
    fp32, bf16, int4 = (costs[weights]["time_per_token"].value for weights in ("fp32", "bf16", "int4-g32"))
    assert 1.6 < fp32 / bf16 < 2.1 and int4 < bf16


@pytest.mark.parametrize("quantity", ["time_per_token", "energy"])
def test_a_head_takes_what_its_own_format_does(quantity: Quantity) -> None:
    bare, int4 = replace(with_format(LARGE, FP32), layers=()), parse_format("int4-g128")
    models = [bare, replace(bare, head_weights=int4), replace(bare, embedding_weights=int4)]
    plain, own, both = (part_costs(read_profile("jetson_agx_orin"), m, LOAD, quantity).fixed for m in models)
    assert own == both != plain


def test_eager_torch_is_told_of_nvidias_gpus_alone() -> None:
    eager = predict(read_profile("rtx_4090"), MODEL, LOAD, "torch")
    assert eager["time_per_token"].value > predict(read_profile("rtx_4090"), MODEL, LOAD)["time_per_token"].value
    with pytest.raises(InputError, match=r"raspberry_pi_5.*datasheet"):
        predict(read_profile("raspberry_pi_5"), MODEL, LOAD, "torch")


def test_the_class_of_runtime_follows_from_the_device() -> None:
    names = {name: runtime_of(read_profile(name), "onnxruntime")[0].name for name in known_devices()}
    assert {name for name, runtime in names.items() if runtime == "compiled"} == {
        name for name in known_devices() if name.startswith(("jetson", "rtx"))
    }
    assert names["apple_m2"] == "llama.cpp-metal"
    assert names["intel_n100"] == names["raspberry_pi_5"] == "llama.cpp-cpu"
    assert names["h100_sxm"] == names["l4"] == "graph-server"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "graph-server"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "graph-server"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "compiled"),
        ("NVIDIA RTX 6000 Ada Generation", "compiled"),
        ("NVIDIA GeForce GTX 1080 Ti", "compiled"),
        ("Quadro RTX 8000", "compiled"),
    ],
)
def test_a_measured_card_is_a_servers_by_its_name(model: str, name: str) -> None:
    profile = read_profile("h100_sxm")
    runtime, _ = runtime_of(replace(profile, device=replace(profile.device, model=model)), "onnxruntime")
    assert runtime.name == name
