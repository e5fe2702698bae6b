"""Serving whole models: arithmetic by hand, limits, monotony, intervals and bad input."""

import importlib
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.datasheet_figures import datasheet_ceilings
from blockwright.llama import LLAMA_8B
from blockwright.profiler.operators import Attend, Matmul, Operator
from blockwright.profiler.serving import Link, Server, max_sequences, power_of, serve, step_time, step_use
from blockwright.profiler.serving_operators import STORAGES, Step, num_all_reduces, step_operators
from blockwright.profiler.serving_runtimes import RUNTIMES, Power, Stream, streamed_times
from blockwright.spec import Attention, Block, GatedFFN, NoOp, Window

DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or Path(__file__).parents[3] / "shared" / "data")
WEIGHTS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 128256
BARE = replace(RUNTIMES["graph-server"], name="bare", step_s=0.0, sequence_s=0.0)
H100 = datasheet_ceilings("h100_sxm")


def figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, origin="modelled", source="a test")


def server(**changes) -> Server:
    return replace(Server(model=LLAMA_8B, ceilings=H100, runtime=RUNTIMES["graph-server"]), **changes)


def matmuls(step: Step, storage: str = "bf16", num_devices: int = 1) -> dict[Operator, int]:
    counted = step_operators(LLAMA_8B, step, STORAGES[storage], "bf16", num_devices)
    return {operator: times for operator, times in counted.items() if isinstance(operator, Matmul)}


def weight_bytes(storage: str = "bf16", num_devices: int = 1) -> int:
    found = matmuls(Step(sequences=1, context=1), storage, num_devices)
    return sum(operator.weight_bytes * times for operator, times in found.items() if isinstance(operator, Matmul))


def test_weights_are_counted_once():
    assert weight_bytes() == 2 * WEIGHTS


def test_the_head_of_q4_k_m_keeps_more_bits_than_the_layers():
    layers = WEIGHTS - 4096 * 128256
    assert weight_bytes("q4_k_m") == pytest.approx(
        (4.8 * layers + 6.5625 * 4096 * 128256) / 8, abs=33 * 4
    )  # whole bytes


def test_devices_share_weights_and_flop_evenly():
    step = Step(sequences=3, context=100)
    alone, shared = matmuls(step), matmuls(step, num_devices=4)
    assert weight_bytes(num_devices=4) == weight_bytes() / 4
    assert sum(o.flop * n for o, n in shared.items()) == sum(o.flop * n for o, n in alone.items()) / 4


def test_more_devices_than_kv_heads_copy_them():
    counted = step_operators(LLAMA_8B, Step(sequences=1, context=64), STORAGES["bf16"], "bf16", 16)
    (attend,) = (operator for operator in counted if isinstance(operator, Attend))
    assert (attend.num_heads, attend.num_kv_heads) == (2, 1)


def test_prompts_and_sequences_share_products_but_not_attention():
    counted = step_operators(
        LLAMA_8B, Step(sequences=5, context=64, prompts=2, prompt_tokens=30), STORAGES["bf16"], "bf16"
    )
    attends = sorted((o.batch, o.new_tokens, o.context) for o in counted if isinstance(o, Attend))
    assert attends == [(2, 30, 30), (5, 1, 64)]
    assert {o.rows for o in counted if isinstance(o, Matmul)} == {65, 7}  # the head writes 5 + 2 tokens


@pytest.mark.parametrize(
    ("context", "prompt_tokens", "window"), [(0, 30, 8), (64, 30, 8), (4, 30, 8), (4, 30, 16), (64, 30, 40), (9, 1, 8)]
)
def test_a_window_bounds_the_pairs_of_prompts_and_of_sequences(context: int, prompt_tokens: int, window: int):
    mixer = Attention(num_kv_heads=8, reach=Window(num_tokens=window))
    model = replace(LLAMA_8B, layers=(Block(mixer=mixer, ffn=NoOp()),))
    step = Step(sequences=5 if context else 0, context=context, prompts=2, prompt_tokens=prompt_tokens)
    attends = [o for o in step_operators(model, step, STORAGES["bf16"], "bf16") if isinstance(o, Attend)]
    (prompt,) = (o for o in attends if o.batch == 2)
    assert prompt.pairs == 2 * sum(min(position + 1, window) for position in range(prompt_tokens))
    values = prompt_tokens * (2 * 32 + 2 * 8) * 128  # all keys are read, whatever the window
    assert prompt.num_bytes == 2 * 2 * values
    assert [o.pairs for o in attends if o.batch == 5] == [5 * min(context, window)] * bool(context)


def test_a_window_makes_a_long_prompt_cheaper():
    def prefill_s(mixer: Attention) -> float:
        model = replace(LLAMA_8B, layers=(Block(mixer=mixer, ffn=NoOp()),))
        step = Step(sequences=0, context=0, prompts=1, prompt_tokens=16384)
        return step_time(server(model=model), step).value

    full = Attention(num_kv_heads=8)
    assert prefill_s(replace(full, reach=Window(num_tokens=512))) < 0.8 * prefill_s(full)
    assert prefill_s(replace(full, reach=Window(num_tokens=16384))) == prefill_s(full)


def test_layers_without_parts_need_no_all_reduce():
    model = replace(LLAMA_8B, layers=(Block(mixer=NoOp(), ffn=GatedFFN(width=64)), *LLAMA_8B.layers[:2]))
    assert num_all_reduces(model) == 5


def test_a_stream_reads_at_the_lesser_of_memory_and_units():
    of = Ceilings(
        read_bytes_per_s=figure(1e12),
        flop_per_s={"fp16": figure(1e14), "fp32": figure(1e13)},
        launch_s=figure(1e-6),
        num_units=10,
    )
    stream = Stream(
        read_share=1.0, unit_bytes_per_s=1e10, rate_share=1.0, unit_flop_per_s=1e15, unpack_flop=4.0, cache_reads=2.0
    )
    plain = Matmul(rows=1, inputs=1000, outputs=1000, weights="fp16", weight_bytes=2_000_000, bytes_per_value=2)
    packed = replace(plain, weight_bytes=500_000)
    attend = Attend(
        batch=1,
        new_tokens=1,
        context=1000,
        num_heads=8,
        num_kv_heads=8,
        head_dim=128,
        bytes_per_value=2,
        kv_bytes_per_value=2,
    )
    read = 1e11 / (1 + 0.1**4) ** 0.25  # ten units draw a tenth of what memory delivers
    expected = [2_004_000 / read, 504_000 / read + 4e6 / 1e13, 2 * attend.num_bytes / read]
    assert streamed_times([plain, packed, attend], of, stream) == pytest.approx(expected, rel=1e-12)


def test_a_ring_moves_each_byte_twice_but_for_one_share():
    link = Link(latency_s=1e-5, bytes_per_s=1e11)
    assert link.all_reduce_s(1e9, 1) == 0
    assert link.all_reduce_s(1e9, 4) == pytest.approx(1e-5 + 1.5 * 1e9 / 1e11)


def test_a_step_is_the_sum_of_its_parts():
    runtime = replace(BARE, step_s=1.0, sequence_s=0.1, layer_s=0.01)
    one_each = server(
        runtime=runtime,
        operator_times=lambda operators: np.full(len(operators), 1e-3),
        num_devices=2,
        link=Link(latency_s=1e-2, bytes_per_s=math.inf),
    )
    step = Step(sequences=4, context=50)
    operators = sum(step_operators(LLAMA_8B, step, STORAGES["bf16"], "bf16", 2).values())
    host = 1.0 + 4 * 0.1 + 32 * 0.01
    assert step_time(one_each, step).value == pytest.approx(host + operators * 1e-3 + 64 * 1e-2)


def test_one_sequence_is_bound_by_bandwidth():
    twice = replace(H100, read_bytes_per_s=figure(2 * 3350e9))
    same = replace(H100, flop_per_s={name: figure(2 * rate.value) for name, rate in H100.flop_per_s.items()})
    step = Step(sequences=1, context=128)
    time_s = step_use(server(runtime=BARE), step).time_s
    assert step_use(server(runtime=BARE, ceilings=twice), step).time_s < 0.75 * time_s
    assert step_use(server(runtime=BARE, ceilings=same), step).time_s > 0.93 * time_s
    assert time_s > 2 * WEIGHTS / 3350e9


def test_many_sequences_are_bound_by_products():
    faster = replace(H100, flop_per_s={name: figure(2 * rate.value) for name, rate in H100.flop_per_s.items()})
    wider = replace(H100, read_bytes_per_s=figure(2 * 3350e9))
    step = Step(sequences=0, context=0, prompts=8, prompt_tokens=1024)
    time_s = step_use(server(runtime=BARE), step).time_s
    assert step_use(server(runtime=BARE, ceilings=faster), step).time_s < 0.7 * time_s
    assert step_use(server(runtime=BARE, ceilings=wider), step).time_s > 0.85 * time_s
    assert time_s > 2 * 8192 * (WEIGHTS - 4096 * 128256) / 989.4e12


@pytest.mark.parametrize(
    "name", ["graph-server", "compiled", "llama.cpp-cuda", "llama.cpp-metal", "llama.cpp-cpu", "eager-torch"]
)
def test_time_grows_with_batch_context_and_bytes(name: str):
    of = server(runtime=RUNTIMES[name])

    def time_s(sequences: int = 8, context: int = 512, storage: str = "fp16") -> float:
        return step_time(replace(of, storage=STORAGES[storage]), Step(sequences=sequences, context=context)).value

    by_batch = [time_s(sequences=count) for count in (1, 8, 64, 512)]
    by_context = [time_s(context=count) for count in (64, 1024, 16384)]
    assert by_batch == sorted(by_batch)
    assert by_context == sorted(by_context)
    assert time_s(storage="q8_0") <= time_s()


def test_a_slow_host_hides_a_fast_device():
    step = Step(sequences=1, context=64)
    eager = replace(RUNTIMES["eager-torch"], layer_s=1.0, step_s=0.0)
    assert step_time(server(runtime=eager), step).value == pytest.approx(32.0)


def test_a_pipeline_is_no_faster_with_more_devices():
    one, four = (server(runtime=RUNTIMES["llama.cpp-cuda"], storage=STORAGES["fp16"], num_devices=n) for n in (1, 4))
    step = Step(sequences=1, context=64)
    more = step_time(four, step).value - step_time(one, step).value
    assert more == pytest.approx(3 * RUNTIMES["llama.cpp-cuda"].hop_s)


def test_tensor_parallel_is_faster_but_not_by_all_of_it():
    one, four = (step_time(server(num_devices=n), Step(sequences=1, context=64)).value for n in (1, 4))
    assert one / 4 < four < one


def test_power_lies_between_idle_and_the_limit():
    power = Power(idle=0.2, reading=1.0, products=2.0, busy=0.5)
    assert power.share(0, 0, 0) == pytest.approx(0.2)
    assert power.share(0.5, 0.1, 0.8) == pytest.approx(0.2 + 0.8 * (1 - math.exp(-1.1)))
    assert 0.2 < power.share(1, 1, 1) < 1


def test_energy_is_power_times_time_over_tokens_and_never_nothing():
    of = server()
    service = serve(of, Load(batch=32, prompt_tokens=200, new_tokens=400))
    assert service.energy_per_token is not None
    assert 0 < service.energy_per_token.low < service.energy_per_token.value < service.energy_per_token.high
    watts = service.energy_per_token.value * service.throughput.value
    assert 0.1 * 700 < watts < 700
    use = step_use(of, Step(sequences=32, context=400, prompts=1, prompt_tokens=16))
    assert watts == pytest.approx(power_of(of, use))


def test_devices_that_wait_for_each_other_draw_for_their_share_of_the_step():
    runtime = replace(RUNTIMES["llama.cpp-cuda"], hop_s=0.0)
    one, two = (server(runtime=runtime, num_devices=n) for n in (1, 2))
    load = Load(batch=1, prompt_tokens=1, new_tokens=100)
    use = step_use(one, Step(sequences=1, context=51))
    power_w = power_of(two, replace(use, device_s=use.device_s / 2, num_bytes=use.num_bytes / 2, flop=use.flop / 2))
    energy = serve(two, load).energy_per_token
    assert power_w and energy and energy.value == pytest.approx(2 * power_w * use.time_s, rel=1e-6)


def test_energy_is_unknown_without_a_power_limit():
    of = server(ceilings=replace(H100, busy_w=None))
    assert serve(of, Load(batch=1, prompt_tokens=8, new_tokens=8)).energy_per_token is None


def test_batching_gives_more_tokens_for_less_energy_each():
    few, many = (serve(server(), Load(batch=n, prompt_tokens=200, new_tokens=400)) for n in (4, 256))
    assert many.throughput.value > 5 * few.throughput.value
    assert many.time_per_token.value > few.time_per_token.value
    assert many.energy_per_token and few.energy_per_token
    assert many.energy_per_token.value < few.energy_per_token.value / 3


def test_throughput_is_the_batch_over_the_mean_step():
    fixed = server(runtime=replace(BARE, step_s=0.5), operator_times=lambda operators: np.zeros(len(operators)))
    service = serve(fixed, Load(batch=20, prompt_tokens=10, new_tokens=10))
    assert service.throughput.value == pytest.approx(40.0)


def test_the_median_step_reads_no_prompt_where_few_sequences_end():
    service = serve(server(), Load(batch=32, prompt_tokens=500, new_tokens=100), mean_context=550)
    assert service.time_per_token == step_time(server(), Step(sequences=32, context=550))
    assert service.batch / service.throughput.value > service.time_per_token.value


def test_every_cost_is_modelled_and_inside_its_interval():
    service = serve(server(), Load(batch=16, prompt_tokens=100, new_tokens=100))
    costs = [service.time_per_token, service.time_to_first_token, service.throughput, service.energy_per_token]
    for cost in costs:
        assert cost and cost.origin == "modelled"
        assert 0 < cost.low < cost.value < cost.high < math.inf


def test_memory_bounds_the_sequences():
    of = server(memory_bytes=80e9)
    room = 0.9 * 80e9 - 3.5e9 - 2 * WEIGHTS
    assert max_sequences(of, 1000.0) == pytest.approx(room / (131072 * 1000))
    assert serve(of, Load(batch=100_000, prompt_tokens=500, new_tokens=1000)).batch == int(room / (131072 * 1000))


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"room for 15\.\d+ GB of weights") as caught:
        serve(server(memory_bytes=16e9), Load(batch=1, prompt_tokens=10, new_tokens=10))
    assert caught.value.field == "server.memory_bytes"


def test_heads_that_cannot_be_shared_out_are_refused():
    with pytest.raises(InputError, match="num_devices: got 3"):
        step_time(server(num_devices=3), Step(sequences=1, context=1))


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0), (-1, 8, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0)])
def test_a_step_without_work_is_refused(numbers: tuple[int, int, int, int]):
    sequences, context, prompts, prompt_tokens = numbers
    with pytest.raises(InputError, match=r"^step"):
        Step(sequences=sequences, context=context, prompts=prompts, prompt_tokens=prompt_tokens)


def test_a_format_that_the_device_lacks_is_refused():
    with pytest.raises(InputError, match="storage: got fp8 on a device with rates of fp32"):
        step_time(
            server(ceilings=datasheet_ceilings("raspberry_pi_5"), storage=STORAGES["fp8"]), Step(sequences=1, context=1)
        )


def test_a_server_without_layers_is_refused():
    with pytest.raises(InputError, match=r"^model"):
        server(model=replace(LLAMA_8B, layers=()))


@pytest.mark.skipif(
    not (DATA / "hw" / "llamacpp_gpu_bench").is_dir(),
    reason="no hw/llamacpp_gpu_bench: neither in BLOCKWRIGHT_DATA nor in shared/data beside the checkout",
)
def test_the_open_tables_are_predicted_as_well_as_is_claimed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "costmodel"))
    tables = importlib.import_module("serving_tables")
    rows = [row for row in tables.llamacpp(DATA / "hw") if not row.device.startswith(tables.METAL)]
    costs = []
    for row in rows:
        of = server(
            model=tables.model(row.model),
            ceilings=tables.ceilings(row.device),
            runtime=RUNTIMES["llama.cpp-cuda"],
            storage=STORAGES[row.storage],
            num_devices=row.num_devices,
        )
        costs.append(step_time(of, Step(sequences=1, context=row.num_tokens // 2)))
    errors = np.abs([cost.value / row.token_s - 1 for cost, row in zip(costs, rows, strict=True)])
    held = [cost.low <= row.token_s <= cost.high for cost, row in zip(costs, rows, strict=True)]
    assert errors.mean() < 0.08 and (errors < 0.25).mean() > 0.97 and np.mean(held) > 0.85
