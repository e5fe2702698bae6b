"""The flavour for TensorRT 10.3, run by ONNX Runtime: a whole generation, its caches written by the caller."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import SessionSettings
from blockwright.compile.flavour import Flavour
from blockwright.compile.graph import Activations
from blockwright.compile.places import places, reach_by_mask, visible, visible_among, visible_before
from blockwright.compile.session import make_session
from blockwright.llama import llama
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.synthetic import random_weights
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import (
    FP16,
    FP32,
    Attention,
    Block,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Reach,
    Window,
    parse_format,
    with_format,
)
from decoders import LLAMA3, every_kind

SLOTS = 64
LENGTHS, NUM_STEPS, CHUNK = (13, 1, 8), 12, 5
EXACT = SessionSettings(num_threads=1, accuracy_level=0)
LAYERS = every_kind(96, 160, 32, reach=Window(num_tokens=6))
PLAIN = llama(LAYERS, hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=SLOTS)
WINDOWS = tuple(
    Block(mixer=Attention(num_kv_heads=heads, reach=Window(num_tokens=num_tokens)), ffn=GatedFFN(width=96))
    for heads, num_tokens in ((2, 1), (1, 7), (2, 7))
)
MODELS = {
    "homogeneous": replace(PLAIN, layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96)),) * 3),
    "heterogeneous": PLAIN,
    "windows alone, shorter than a chunk and longer": replace(PLAIN, layers=WINDOWS),
    "biases, untied": replace(
        PLAIN, has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True, has_tied_embeddings=False
    ),
    "qwen3": replace(PLAIN, family="qwen3", has_qk_norm=True, head_dim=32),
    "llama 3's rope": replace(PLAIN, rope=LLAMA3),
    "no attention": replace(
        PLAIN, layers=(Block(mixer=NoOp(), ffn=GatedFFN(width=64)), Block(mixer=LinearMixer(), ffn=LinearFFN()))
    ),
}

DOCUMENTED = {
    *("Add", "Cast", "Concat", "DequantizeLinear", "Div", "Gather", "GatherND", "Gemm", "MatMul", "Mul", "Neg"),
    *("ReduceMean", "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Transpose", "Unsqueeze", "Where"),
}
"""Of what we write, what ONNX-TensorRT's docs/operators.md of TensorRT 10.6 has in FP32, FP16 and BF16."""


def _weights(model: Model) -> dict[str, np.ndarray]:
    """Large enough that logits differ by whole numbers, and every bias and norm matters."""
    return {n: 8 * array if array.ndim == 2 else array for n, array in random_weights(model, seed=1).items()}


def _graph(model: Model, flavour: str, activations: Activations = "float32") -> onnx.ModelProto:
    asked = Flavour(name="decomposed" if flavour == "decomposed" else "standard", activations=activations, slots=SLOTS)
    return decoder_graph(model, _weights(model), SLOTS, asked)


def _texts(model: Model) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, model.vocab_size, length + NUM_STEPS) for length in LENGTHS]


class _Caller:
    """Runs a graph over sequences as a session does: the caches are the caller's."""

    def __init__(self, model: Model, graph: onnx.ModelProto, batch: int) -> None:
        self.session = make_session(graph.SerializeToString(), EXACT)
        self.reaches = reach_by_mask(model)
        number = (
            np.float16 if graph.graph.input[-1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 else np.float32
        )
        self.inputs = {each.name for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]
        self.cache = {
            each.name: np.full([batch, *each.shape[1:]], 9, number)  # what nobody wrote may be any number
            for each in self.session.get_inputs()
            if each.name.startswith("past_")
        }

    def run(self, ids_BT: np.ndarray, starts_B: np.ndarray, last_B: np.ndarray) -> np.ndarray:
        known = places(self.reaches, starts_B, ids_BT.shape[1], np.arange(SLOTS))
        feeds = {"ids": ids_BT, "last": last_B} | {n: made() for n, made in known.items() if n in self.inputs}
        found = dict(zip(self.outputs, self.session.run(self.outputs, feeds | self.cache), strict=True))
        self._keep({name: np.asarray(value) for name, value in found.items() if name != "logits"}, starts_B)
        return np.asarray(found["logits"])

    def _keep(self, found: Mapping[str, np.ndarray], starts_B: np.ndarray) -> None:
        for name, value in found.items():
            kind, _, rest = name.partition("_")
            if kind == "present":
                self.cache[f"past_{rest}"] = value
                continue
            for row, start in enumerate(starts_B):
                self.cache[f"past_{rest}"][row, :, start : start + value.shape[2]] = value[row]


def _generated(model: Model, graph: onnx.ModelProto) -> np.ndarray:
    """Logits after each prompt, read in chunks, and after each token that follows, logits_SBV."""
    texts, lengths_B = _texts(model), np.array(LENGTHS)
    caller = _Caller(model, graph, len(texts))
    prompts_BT = np.zeros((len(texts), max(LENGTHS)), dtype=np.int64)
    for row, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        prompts_BT[row, :length] = text[:length]
    logits_BV = np.zeros((len(texts), model.vocab_size), dtype=np.float32)
    for start in range(0, prompts_BT.shape[1], CHUNK):
        chunk_BT = prompts_BT[:, start : start + CHUNK]
        last_B = lengths_B - 1 - start
        found_BV = caller.run(chunk_BT, np.full(len(texts), start), last_B.clip(0, chunk_BT.shape[1] - 1))
        ends_here_B = (last_B >= 0) & (last_B < chunk_BT.shape[1])
        logits_BV[ends_here_B] = found_BV[ends_here_B]
    steps = [logits_BV]
    for step in range(NUM_STEPS):
        ids_B = np.array([text[length + step] for text, length in zip(texts, LENGTHS, strict=True)])
        steps.append(caller.run(ids_B[:, None], lengths_B + step, np.zeros_like(lengths_B)))
    return np.stack(steps)


@torch.no_grad()
def _expected(model: Model) -> np.ndarray:
    """Of one forward of torch over each whole text, logits_SBV."""
    weights = {name: torch.from_numpy(array) for name, array in _weights(model).items()}
    child = load_weights(build_child(model, hf_config(model)), weights)
    rows = [child(torch.from_numpy(text)[None], use_cache=False).logits[0].numpy() for text in _texts(model)]
    return np.stack([row_TV[length - 1 :] for row_TV, length in zip(rows, LENGTHS, strict=True)], axis=1)


def _difference(found_SBV: np.ndarray, expected_SBV: np.ndarray) -> float:
    """The largest, of the logits' standard deviation."""
    return float(np.abs(found_SBV - expected_SBV).max() / expected_SBV.std())


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_generation_gives_the_logits_of_torch(name: str) -> None:
    model = replace(with_format(MODELS[name], FP32), embedding_weights=FP32)
    assert _difference(_generated(model, _graph(model, "decomposed")), _expected(model)) < 1e-4


@pytest.mark.parametrize("text", ["fp32", "int4-g32"])
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_generation_gives_the_logits_of_the_standard_flavour(name: str, text: str) -> None:
    model = replace(with_format(MODELS[name], parse_format(text)), embedding_weights=FP32)
    found, expected = (_generated(model, _graph(model, flavour)) for flavour in ("decomposed", "standard"))
    assert _difference(found, expected) < 1e-4


# Of the logits' standard deviation: as for the standard flavour (test_activations), whose worst is 0.012.
LARGEST_IN_HALVES = 0.02


@pytest.mark.parametrize("name", ["heterogeneous", "biases, untied", "qwen3"])
def test_halves_stay_near_torch(name: str) -> None:
    model = replace(with_format(MODELS[name], FP16), embedding_weights=FP16)
    difference = _difference(_generated(model, _graph(model, "decomposed", "float16")), _expected(model))
    assert 1e-5 < difference < LARGEST_IN_HALVES


@pytest.mark.parametrize("activations", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("text", ["fp16", "int4-g32"])
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_valid_onnx_of_operators_that_tensorrt_documents(
    name: str, text: str, activations: Activations
) -> None:
    stored = FP32 if activations == "float32" else FP16
    model = replace(with_format(MODELS[name], parse_format(text)), embedding_weights=stored)
    graph = _graph(model, "decomposed", activations)
    onnx.checker.check_model(graph, full_check=True)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 21)]
    assert graph.ir_version == 10
    assert {node.op_type for node in graph.graph.node} <= DOCUMENTED


def test_only_new_keys_and_values_are_returned() -> None:
    graph = _graph(PLAIN, "decomposed").graph
    shapes = {
        each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim]
        for each in (*graph.input, *graph.output)
    }
    assert shapes["past_key_1"] == ["batch", 4, SLOTS, 16]
    assert shapes["new_key_1"] == ["batch", 4, "tokens", 16]
    assert shapes["new_value_5"] == ["batch", 2, "tokens", 16]
    assert shapes["mask_past"] == shapes["mask_past_window_6"] == ["batch", 1, "tokens", SLOTS]
    assert shapes["mask_new"] == shapes["mask_new_window_6"] == ["batch", 1, "tokens", "tokens"]
    caches = [f"{word}_{layer}" for layer in (1, 3, 5) for word in ("key", "value")]
    masks = [f"mask_{part}{reach}" for reach in ("", "_window_6") for part in ("past", "new")]
    named = ["ids", "last", "positions", *masks, *(f"past_{each}" for each in caches)]
    assert [each.name for each in graph.input] == named
    assert [each.name for each in graph.output] == [*(f"new_{each}" for each in caches), "logits"]


@pytest.mark.parametrize("reach", [Full(), Window(num_tokens=1), Window(num_tokens=3), Window(num_tokens=9)])
def test_both_masks_together_are_the_one_over_slots(reach: Reach) -> None:
    starts_B, num_tokens, slot_S = np.array([0, 5, 11]), 4, np.arange(16)
    positions_BT = starts_B[:, None] + np.arange(num_tokens)
    together_BTS = visible_before(reach, positions_BT, slot_S)
    among_BTT = visible_among(reach, positions_BT)
    for row, start in enumerate(starts_B):
        assert not together_BTS[row, :, start:].any(), "what was not filled before this run is not read"
        together_BTS[row, :, start : start + num_tokens] = among_BTT[row]
    assert np.array_equal(together_BTS, visible(reach, positions_BT, slot_S))
