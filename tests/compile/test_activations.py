"""Graphs that compute in halves, with caches of fixed size: what TensorRT takes, run here by ONNX Runtime.

The same code builds them in fp32, where they agree with torch to rounding; in fp16 to what its digits allow. ONNX
Runtime has no bf16 on the CPU: those graphs are checked, not run.
"""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from blockwright.compile.blocked import rounded
from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import SessionSettings
from blockwright.compile.flavour import Flavour
from blockwright.compile.graph import Activations
from blockwright.compile.session import make_session
from blockwright.compile.standard import mask_name
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.synthetic import random_weights
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import FP16, FP32, Full, Model, NoOp, Reach, Window, parse_format, with_format
from decoders import LLAMA3, every_kind

SLOTS = 64
NUM_TOKENS = 20
EXACT = SessionSettings(num_threads=1, accuracy_level=0)
LAYERS = every_kind(96, 160, 32, reach=Window(num_tokens=6))
PLAIN = llama(LAYERS, hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=SLOTS)
MODELS = {
    "tied": PLAIN,
    "biases": replace(PLAIN, has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True, has_tied_embeddings=False),
    "qwen3": replace(PLAIN, family="qwen3", has_qk_norm=True),
    "llama3 rope": replace(PLAIN, rope=LLAMA3),
}
MODELS = {name: replace(model, embedding_weights=FP32) for name, model in MODELS.items()}


def _weights(model: Model) -> dict[str, np.ndarray]:
    return {n: 8 * array if array.ndim == 2 else array for n, array in random_weights(model, seed=1).items()}


def _graph(model: Model, activations: Activations) -> onnx.ModelProto:
    flavour = Flavour(name="standard", activations=activations, slots=SLOTS)
    return decoder_graph(model, _weights(model), SLOTS, flavour)


def _logits(model: Model, activations: Activations, ids_T: np.ndarray) -> np.ndarray:
    """Of a graph that reads all but the last token at once and then that one."""
    session = make_session(_graph(model, activations).SerializeToString(), EXACT)
    number = np.float16 if activations == "float16" else np.float32
    cache = {
        each.name: np.zeros([1, *each.shape[1:]], number)
        for each in session.get_inputs()
        if each.name.startswith("past_")
    }
    found: list[np.ndarray] = []
    for start, end in ((0, len(ids_T) - 1), (len(ids_T) - 1, len(ids_T))):
        positions_T = np.arange(start, end)
        feeds = {
            "ids": ids_T[None, start:end],
            "last": np.array([end - start - 1]),
            "positions": positions_T[None],
            "write_index": np.array([start]),
        } | {mask_name(reach): _mask(reach, positions_T) for reach in (Full(), Window(num_tokens=6))}
        names = ["logits", *(name.replace("past_", "present_") for name in cache)]
        logits, *present = session.run(names, feeds | cache)
        cache = dict(zip(cache, present, strict=True))
        found.append(np.asarray(logits)[0])
    return np.stack(found)


def _mask(reach: Reach, positions_T: np.ndarray) -> np.ndarray:
    distance_TS = positions_T[:, None] - np.arange(SLOTS)
    reaches_TS = distance_TS >= 0
    if isinstance(reach, Window):
        reaches_TS &= distance_TS < reach.num_tokens
    return reaches_TS[None, None]


@torch.no_grad()
def _torch_logits(model: Model, ids_T: np.ndarray) -> np.ndarray:
    stored = {name: _as_stored(model, name, array) for name, array in _weights(model).items()}
    child = load_weights(build_child(model, hf_config(model)), {n: torch.from_numpy(a) for n, a in stored.items()})
    return child(torch.from_numpy(ids_T)[None], use_cache=False).logits[0, -2:].numpy()


def _as_stored(model: Model, name: str, array: np.ndarray) -> np.ndarray:
    match = re.match(r"model\.layers\.(\d+)\.(self_attn|mlp)\.", name)
    if match is None or array.ndim != 2:
        return array
    block = model.layers[int(match[1])]
    part = block.mixer if match[2] == "self_attn" else block.ffn
    assert not isinstance(part, NoOp)
    return np.ascontiguousarray(rounded(array.T, part.weights).T)


# Of the logits' standard deviation. The worst of these models in fp16, measured with onnxruntime 1.31.1: 0.012.
TOLERANCE = {"float32": 1e-4, "float16": 0.02}


@pytest.mark.parametrize("activations", TOLERANCE)
@pytest.mark.parametrize("text", ["fp32", "int4-g32"])
@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_torch(name: str, text: str, activations: Activations) -> None:
    model = replace(with_format(MODELS[name], parse_format(text)), embedding_weights=FP32)
    ids_T = np.random.default_rng(0).integers(0, model.vocab_size, NUM_TOKENS)
    expected = _torch_logits(model, ids_T)
    difference = np.abs(_logits(model, activations, ids_T) - expected).max() / expected.std()
    assert difference < TOLERANCE[activations]
    assert activations == "float32" or difference > 1e-5, "halves must show, or this compares nothing"


@pytest.mark.parametrize("activations", ["float16", "bfloat16"])
@pytest.mark.parametrize("text", ["fp32", "fp16", "int4-g32"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_the_logits_is_in_fp32(name: str, text: str, activations: Activations) -> None:
    model = replace(with_format(MODELS[name], parse_format(text)), embedding_weights=FP16)
    graph = _graph(model, activations)
    onnx.checker.check_model(graph, full_check=True)
    wide = onnx.TensorProto.FLOAT
    assert not [each.name for each in graph.graph.initializer if each.data_type == wide]
    assert not [each.name for each in graph.graph.input if each.type.tensor_type.elem_type == wide]
    assert [each.name for each in graph.graph.output if each.type.tensor_type.elem_type == wide] == ["logits"]


def test_caches_and_masks_have_the_slots_that_were_asked_for() -> None:
    shapes = {
        each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim]
        for each in _graph(PLAIN, "float16").graph.input
    }
    assert shapes["past_key_1"] == ["batch", 4, SLOTS, 16]
    assert shapes["past_value_5"] == ["batch", 2, SLOTS, 16]
    assert shapes["mask"] == shapes["mask_window_6"] == ["batch", 1, "tokens", SLOTS]


def test_what_is_too_large_for_halves_is_refused_by_name() -> None:
    weights = _weights(PLAIN)
    weights["model.layers.1.input_layernorm.weight"][3] = 7e4
    flavour = Flavour(name="standard", activations="float16", slots=SLOTS)
    with pytest.raises(InputError, match=r"model\.layers\.1\.input_layernorm\.weight.*70000"):
        decoder_graph(PLAIN, weights, SLOTS, flavour)
    kept = decoder_graph(PLAIN, weights, SLOTS, replace(flavour, activations="bfloat16")).graph.initializer
    norm = next(each for each in kept if each.name == "model.layers.1.input_layernorm.weight")
    assert onnx.numpy_helper.to_array(norm).astype(np.float32).max() == np.float32(ml_dtypes.bfloat16(7e4))
