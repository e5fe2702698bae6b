"""Counting from structure agrees with the modules that torch builds, and with counting one by one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedConfig

from blockwright.compile.engine import DATA_FILE, write_graph
from blockwright.compile.flavour import STANDARD
from blockwright.count import (
    block_parameters,
    ffn_weight_bytes,
    kv_bytes_per_slot,
    matrix_bytes,
    mixer_weight_bytes,
    parameters,
    shared_weight_bytes,
)
from blockwright.model.child import build_child
from blockwright.model.parent import spec_of
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP16, FP32, Attention, Block, Format, GatedFFN, LinearFFN, LinearMixer, Model, NoOp

BIASES: dict[str, list[str]] = {
    "llama": ["attention_bias", "mlp_bias"],
    "mistral": [],
    "qwen2": [],
    "qwen3": ["attention_bias"],
}
INT4 = Format(name="int4", group_size=32)


@st.composite
def children(draw: st.DrawFn) -> tuple[Model, PreTrainedConfig]:
    """A parent's configuration and a child of it, of every family."""
    family = draw(st.sampled_from(sorted(BIASES)))
    biases: dict[str, Any] = {name: draw(st.booleans()) for name in BIASES[family]}
    config = AutoConfig.for_model(
        family,
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=draw(st.sampled_from([8, 24])),
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=draw(st.sampled_from([2, 6])),
        tie_word_embeddings=draw(st.booleans()),
        max_position_embeddings=32,
        **biases,
    )
    mixers = st.sampled_from([Attention(num_kv_heads=heads) for heads in (1, 2, 4)] + [LinearMixer(), NoOp()])
    ffns = st.sampled_from([GatedFFN(width=width) for width in (1, 5, 12)] + [LinearFFN(), NoOp()])
    layers = tuple(Block(mixer=draw(mixers), ffn=draw(ffns)) for _ in range(3))
    return replace(spec_of(config), layers=layers), config


@settings(max_examples=40, deadline=None)
@given(children())
def test_parameters_are_those_of_the_torch_modules(child: tuple[Model, PreTrainedConfig]) -> None:
    spec, config = child
    model = build_child(spec, config)
    model.tie_weights()
    assert parameters(spec) == sum(parameter.numel() for parameter in model.parameters())
    for block, layer in zip(spec.layers, model.model.layers, strict=True):
        assert block_parameters(spec, block) == sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("weights", "num_bytes"),
    [
        (Format(name="fp32"), 4 * 33 * 5),
        (Format(name="fp16"), 2 * 33 * 5),
        (Format(name="bf16"), 2 * 33 * 5),
        (Format(name="int8", group_size=32), 5 * 2 * (32 + 4)),
        (INT4, 5 * 2 * (16 + 4)),
        (Format(name="int4", group_size=16), 5 * 3 * (8 + 4)),
    ],
)
def test_a_matrix_is_stored_in_whole_groups_with_a_scale_each(weights: Format, num_bytes: int) -> None:
    assert matrix_bytes(33, 5, weights) == num_bytes


@settings(max_examples=40, deadline=None)
@given(children())
def test_weights_in_fp32_take_four_bytes_each(child: tuple[Model, PreTrainedConfig]) -> None:
    spec, _ = child
    for block in spec.layers:
        stored = mixer_weight_bytes(spec, block.mixer) + ffn_weight_bytes(spec, block.ffn)
        assert stored == 4 * block_parameters(spec, block)
    layers = sum(block_parameters(spec, block) for block in spec.layers)
    assert shared_weight_bytes(spec) == 4 * (parameters(spec) - layers)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_quantised_head_is_stored_beside_the_embedding(is_tied: bool) -> None:
    spec = spec_of(AutoConfig.for_model("llama", hidden_size=64, vocab_size=100, tie_word_embeddings=is_tied))
    head = Format(name="int8", group_size=32)
    quantised = replace(spec, embedding_weights=head)
    assert shared_weight_bytes(quantised) == 2 * matrix_bytes(64, 100, head) + 4 * 64


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("head", [None, FP32, Format(name="int8", group_size=32), INT4], ids=str)
@pytest.mark.parametrize("weights", [FP32, FP16, Format(name="int8", group_size=32), INT4], ids=str)
def test_what_stands_outside_the_layers_is_as_large_as_in_an_engines_file(
    weights: Format, head: Format | None, is_tied: bool, tmp_path: Path
) -> None:
    config = AutoConfig.for_model("llama", hidden_size=512, vocab_size=128, tie_word_embeddings=is_tied)
    spec = replace(spec_of(config), layers=(), embedding_weights=weights, head_weights=head)
    files = write_graph(spec, random_weights(spec), 8, STANDARD, tmp_path)
    assert files[DATA_FILE].size_bytes == shared_weight_bytes(spec)


def test_only_matrices_are_quantised() -> None:
    spec = spec_of(
        AutoConfig.for_model("qwen3", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    )
    mixer = Attention(num_kv_heads=2, weights=INT4)
    projections = sum(matrix_bytes(*shape, INT4) for shape in [(64, 64), (64, 32), (64, 32), (64, 64)])
    assert mixer_weight_bytes(spec, mixer) == projections + 4 * (64 + 16 + 16)
    assert ffn_weight_bytes(spec, LinearFFN(weights=INT4)) == matrix_bytes(64, 64, INT4) + 4 * 64


@pytest.mark.parametrize(("mixer", "num_bytes"), [(Attention(num_kv_heads=2), 256), (LinearMixer(), 0), (NoOp(), 0)])
def test_a_token_keeps_a_key_and_a_value_per_kv_head(mixer: Attention | LinearMixer | NoOp, num_bytes: int) -> None:
    spec = spec_of(AutoConfig.for_model("llama", hidden_size=64, num_attention_heads=4, head_dim=16))
    assert kv_bytes_per_slot(spec, mixer) == num_bytes
    assert kv_bytes_per_slot(spec, mixer, bytes_per_value=2) == num_bytes / 2
