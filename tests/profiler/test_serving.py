"""Serving whole models: arithmetic by hand, limits, monotony, intervals and bad input."""

import math
from dataclasses import replace

import numpy as np
import pytest

from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.llama import LLAMA_8B
from blockwright.profiler.operators import Attend, Matmul, Operator
from blockwright.profiler.serving import Link, step_time, step_use
from blockwright.profiler.serving_operators import STORAGES, Step, num_all_reduces, step_operators
from blockwright.profiler.serving_runtimes import RUNTIMES, Stream, streamed_times
from blockwright.spec import Attention, Block, GatedFFN, NoOp, Window
from serving_small import BARE, H100, WEIGHTS, server


def figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, origin="modelled", source="a test")


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
