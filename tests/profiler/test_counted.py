"""What is counted of a TensorRT engine's memory, beside the graphs, the caches and the plans that are really made."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from safetensors.numpy import save_file

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.device_places import make_cache
from blockwright.compile.engine import GRAPH_FILE, TOKENIZER_FILE
from blockwright.compile.slots import PREFILL_CHUNK, slots_for
from blockwright.compile.tensorrt_checks import KERNEL_BYTES
from blockwright.compile.tensorrt_engine import PLAN_FILE, TensorRtOrder, build_tensorrt_engine, flavour_of
from blockwright.compile.tensorrt_package import find_package
from blockwright.compile.tensorrt_stored import Stored, stored_for_tensorrt
from blockwright.cost import Load
from blockwright.llama import llama
from blockwright.profiler.counted import (
    counting_of,
    reaches_of,
    tensorrt_cache_bytes,
    tensorrt_disk,
    tensorrt_memory,
)
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, Format, Full, GatedFFN, Model, NoOp, Reach, Window, parse_format
from decoders import every_kind
from tensorrt_here import needs_rtx

LOAD = Load(batch=3, prompt_tokens=1500, new_tokens=500)
"""So long that a window's tokens go round in fewer slots."""
SLOTS = slots_for(LOAD.total_tokens)
FP16, BF16, INT4, INT4_G128 = map(parse_format, ("fp16", "bf16", "int4-g32", "int4-g128"))
PLAIN = llama(
    every_kind(512, 256, 128, reach=Window(num_tokens=16)),
    hidden_size=128,
    num_heads=4,
    head_dim=32,
    vocab_size=256,
    max_positions=SLOTS,
)
UNTIED = replace(PLAIN, has_tied_embeddings=False, has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True)
NORMED = replace(PLAIN, family="qwen3", has_qk_norm=True)
_BITS: dict[int, int] = {TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.INT4: 4}
_TABLES = ("cosines", "sines")


def _mixed(model: Model, first: str, second: str) -> Model:
    """Mixers in one format, ffns in another."""
    one, other = parse_format(first), parse_format(second)
    layers = tuple(
        Block(
            mixer=block.mixer if isinstance(block.mixer, NoOp) else replace(block.mixer, weights=one),
            ffn=block.ffn if isinstance(block.ffn, NoOp) else replace(block.ffn, weights=other),
        )
        for block in model.layers
    )
    return replace(model, layers=layers)


def _graph(stored: Stored, num_positions: int) -> onnx.GraphProto:
    flavour = flavour_of("fused", stored, slots_for(num_positions))
    return decoder_graph(stored.model, random_weights(stored.model), num_positions, flavour).graph


def _weight_bytes(initializers: Sequence[TensorProto]) -> int:
    """Of all that is no shape, no axis and no table of positions."""
    kept = [each for each in initializers if each.data_type in _BITS and each.name not in _TABLES]
    return sum(math.prod(each.dims) * _BITS[each.data_type] // 8 for each in kept)


@pytest.mark.parametrize("formats", [("fp16", "fp16"), ("bf16", "bf16"), ("int4-g32", "fp16"), ("bf16", "int4-g128")])
@pytest.mark.parametrize("model", [PLAIN, UNTIED, NORMED], ids=["tied", "untied with biases", "norms on queries"])
def test_weights_are_counted_as_the_graph_stores_them(model: Model, formats: tuple[str, str]) -> None:
    model = _mixed(model, *formats)
    graph = _graph(stored_for_tensorrt(model, None), 128)
    assert tensorrt_disk(model).of_model(model).value == _weight_bytes(graph.initializer)


def test_embedding_and_head_are_in_fp16_whatever_the_spec_says_of_them() -> None:
    """Models of a search in int4 say int8, as ONNX Runtime has it."""
    model = _mixed(PLAIN, "int4-g32", "int4-g32")
    expected = tensorrt_disk(replace(model, embedding_weights=FP16)).fixed
    assert tensorrt_disk(replace(model, embedding_weights=parse_format("int8-g32"))).fixed == expected
    assert expected.value == 2 * (256 * 128 + 128)


@pytest.mark.parametrize("activations", [torch.float16, torch.bfloat16])
def test_caches_are_counted_as_an_engine_makes_them(activations: torch.dtype) -> None:
    model = _mixed(PLAIN, "fp16", "int4-g32")
    made = make_cache(model, LOAD.batch, SLOTS, activations, torch.device("cpu"))
    assert tensorrt_cache_bytes(model, LOAD) == sum(tensor.nbytes for tensor in made.values())
    graph = _graph(stored_for_tensorrt(model, None), SLOTS)
    shapes = [each.type.tensor_type.shape.dim for each in graph.input if each.name.startswith("past_")]
    values = [math.prod(dim.dim_value for dim in shape[1:]) for shape in shapes]
    assert tensorrt_cache_bytes(model, LOAD) == 2 * LOAD.batch * sum(values)
    assert len({shape[2].dim_value for shape in shapes}) == 2, "a window's tokens go round in fewer slots"


def test_caches_are_as_long_as_a_load_to_the_next_bucket() -> None:
    model = replace(PLAIN, layers=(Block(mixer=Attention(num_kv_heads=2), ffn=NoOp()),))
    load = Load(batch=2, prompt_tokens=100, new_tokens=30)
    assert tensorrt_cache_bytes(model, load) == 2 * 2 * (2 * 192 * 32) * 2  # batch, keys and values, heads, bytes


def test_without_windows_the_sum_over_parts_is_exact() -> None:
    model = _mixed(UNTIED, "int4-g32", "fp16")
    layers = tuple(
        replace(b, mixer=replace(b.mixer, reach=Full())) if isinstance(b.mixer, Attention) else b for b in model.layers
    )
    model = replace(model, layers=layers)
    for reaches in (None, reaches_of(b.mixer for b in layers), frozenset({Full(), Window(num_tokens=9)})):
        cost = tensorrt_memory(model, LOAD, reaches).of_model(model)
        true = counting_of("tensorrt").whole_bytes(model, LOAD)
        assert (cost.value, cost.low, cost.high) == (true, true, true)


REACHES: tuple[Reach, ...] = (Full(), Window(num_tokens=9), Window(num_tokens=700), Window(num_tokens=1900))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(REACHES), st.sampled_from([1, 2, 4])), max_size=7), st.integers(1, 5))
def test_the_sum_over_parts_holds_what_layers_share(layers: list[tuple[Reach, int]], buckets: int) -> None:
    mixers = [Attention(num_kv_heads=heads, reach=reach, weights=FP16) for reach, heads in layers]
    parent = replace(PLAIN, layers=(Block(mixer=Attention(num_kv_heads=4, weights=FP16), ffn=NoOp()),))
    child = replace(parent, layers=tuple(Block(mixer=mixer, ffn=NoOp()) for mixer in mixers))
    load = Load(batch=2, prompt_tokens=buckets * PREFILL_CHUNK, new_tokens=64)
    true = counting_of("tensorrt").whole_bytes(child, load)
    for reaches in (None, frozenset(REACHES), reaches_of([*mixers, parent.layers[0].mixer])):
        cost = tensorrt_memory(parent, load, reaches).of_model(child)
        assert cost.low <= true <= cost.high


def test_a_window_that_is_the_only_one_costs_what_it_takes() -> None:
    window = Attention(num_kv_heads=2, reach=Window(num_tokens=16), weights=FP16)
    full = replace(window, reach=Full())
    parent = replace(PLAIN, layers=(Block(mixer=full, ffn=NoOp()),) * 2)
    alone = tensorrt_memory(parent, LOAD, frozenset({window.reach}))
    assert alone.of_mixer(window).high == alone.of_mixer(window).value < alone.of_mixer(full).value
    assert alone.fixed.high == alone.fixed.value
    beside = tensorrt_memory(parent, LOAD, frozenset({window.reach, Full()}))
    assert beside.of_mixer(window) == alone.of_mixer(window)
    longer = Window(num_tokens=700)
    shared = tensorrt_memory(parent, LOAD, frozenset({window.reach, longer})).of_mixer(window)
    assert shared.value == alone.of_mixer(window).value
    assert shared.high == alone.of_mixer(replace(window, reach=longer)).value, "it may go round with the longer one"
    assert tensorrt_memory(parent, LOAD).of_mixer(window).high == alone.of_mixer(full).value, "nothing is known"


@needs_rtx
@pytest.mark.parametrize("wide", [FP16, BF16], ids=str)
def test_a_built_plan_is_as_large_as_its_counted_weights_and_some_kernels(wide: Format, tmp_path: Path) -> None:
    layer = Block(
        mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=16), weights=wide),
        ffn=GatedFFN(width=1024, weights=INT4),
    )
    other = Block(mixer=Attention(num_kv_heads=8, weights=INT4_G128), ffn=GatedFFN(width=1536, weights=wide))
    model = llama((layer, other), hidden_size=512, num_heads=8, head_dim=64, vocab_size=40_000, max_positions=SLOTS)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    save_file(random_weights(model), checkpoint / "model.safetensors")
    (checkpoint / TOKENIZER_FILE).write_text("{}")
    (checkpoint / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    order = TensorRtOrder(
        stored=stored_for_tensorrt(model, None),
        num_positions=SLOTS,
        most_sequences=LOAD.batch,
        package=find_package(("tensorrt_rtx",)),
        capabilities=("sm89",),
        built_from="digest",
    )
    engine = build_tensorrt_engine(order, checkpoint, tmp_path / "engine")
    assert engine.format == "mixed"
    counted = tensorrt_disk(model).of_model(model).value
    graph = onnx.load(tmp_path / "engine" / GRAPH_FILE, load_external_data=False).graph
    assert counted == _weight_bytes(graph.initializer)
    tables = 2 * engine.num_positions * model.head_dim
    assert 0 <= engine.weight_bytes - tables - counted < 64 * len(graph.initializer), "tensors begin at whole lines"
    plan_bytes = engine.files[PLAN_FILE].size_bytes
    assert counted <= plan_bytes <= counted + tables + len(engine.profiles) * KERNEL_BYTES
    assert len(engine.profiles) * KERNEL_BYTES < counted, "or kernels would hide what is counted twice"
