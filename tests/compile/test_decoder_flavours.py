"""The decoder in both flavours, and the nodes that each is made of."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.flavour import Flavour, best_flavour
from blockwright.errors import InputError
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import (
    Block,
    LinearMixer,
    NoOp,
    parse_format,
    with_format,
)
from decoder_engines import (
    MODELS,
    NO_ATTENTION,
    decoder_model,
    engine_of,
    weights_of,
)


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_valid_onnx_of_standard_operators(name: str) -> None:
    graph = decoder_graph(MODELS[name], random_weights(MODELS[name]), num_positions=64)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}


CONTRIB = Flavour(name="contrib")


@pytest.mark.parametrize("text", ["fp32", "int8", "int4", "int4-g128"])
@pytest.mark.parametrize("name", ["llama", "biases", "qwen3", "small windows, not rotated"])
def test_both_flavours_give_the_same_logits_of_the_same_codes(text: str, name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    found = []
    for flavour in ("standard", "contrib"):
        (tmp_path / flavour).mkdir()
        decoder = engine_of(tmp_path / flavour, model, weights_of(model), parse_format(text), flavour=flavour)
        sequences = decoder.start(2, 40)
        logits = [sequences.prefill([[5, 6, 7, 8], [9]])]
        logits += [sequences.step(np.array([token, token + 1])).copy() for token in range(30)]
        found.append(np.stack(logits))
    assert np.abs(found[0] - found[1]).max() < 1e-4


@pytest.mark.parametrize("text", ["int4", "int8", "int4-g128"])
def test_packed_codes_are_those_of_the_standard_graph(text: str) -> None:
    model = with_format(
        decoder_model(layers=(Block(mixer=LinearMixer(), ffn=NoOp()),), hidden_size=160), parse_format(text)
    )
    weights = random_weights(model, seed=2)
    graphs = [decoder_graph(model, weights, 64, flavour).graph for flavour in (Flavour(name="standard"), CONTRIB)]
    plain, packed = ({t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer} for graph in graphs)
    name = "model.layers.0.self_attn.linear_attn.weight"
    assert np.array_equal(plain[f"{name}.scales"].T, packed[f"{name}.scales"])
    codes_KN = plain[f"{name}.codes"].astype(int)
    rows_NS = packed[f"{name}.codes"].reshape(len(codes_KN), -1).astype(int)
    unpacked_NK = np.stack([rows_NS & 15, rows_NS >> 4], axis=2).reshape(len(rows_NS), -1) - 8
    unpacked_NK = rows_NS - 128 if text == "int8" else unpacked_NK
    assert np.array_equal(unpacked_NK[:, : len(codes_KN)].T, codes_KN)
    assert not unpacked_NK[:, len(codes_KN) :].any()


def test_contrib_attends_and_multiplies_in_operators_of_its_own_and_joins_what_reads_the_same() -> None:
    model = with_format(decoder_model(), parse_format("int4"))
    nodes = decoder_graph(model, random_weights(model), 64, CONTRIB).graph.node
    counts = Counter(node.op_type for node in nodes)
    assert counts["GroupQueryAttention"] == 3
    assert counts["MatMulNBits"] == 3 * 2 + 3 * 3 + 2 + 1
    assert not {"TensorScatter", "Attention", "DequantizeLinear", "RotaryEmbedding", "MatMul"} & set(counts)


def test_heads_of_a_size_that_contrib_lacks_are_refused_there_and_built_in_the_standard_flavour() -> None:
    model = decoder_model(head_dim=12)
    with pytest.raises(InputError, match="heads of 12"):
        decoder_graph(model, random_weights(model), 64, CONTRIB)
    assert best_flavour(model) == "standard"
    plain = replace(model, layers=NO_ATTENTION)
    decoder_graph(plain, random_weights(plain), 64, CONTRIB)
