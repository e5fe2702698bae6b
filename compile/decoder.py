"""The decoder graph, from a spec and its weights, with a key-value cache per attention layer.

One graph serves prefill and decode. The caller owns the cache: buffers of S slots per sequence that the graph
updates and returns.

    ids_BT                    tokens
    last_B                    which of the T tokens to return logits for
    past_key_i, past_value_i  (B, KV heads, S, head size) for every attention layer i, and present_… as outputs
    logits_BV

What says where the tokens stand, and in which operators all this is written, is the flavour's matter (`standard`,
`contrib`, and `decomposed`, which returns new keys and values in place of caches). Layers without attention own no
cache tensors; layers without anything leave no node.

Shapes: B batch, T new tokens, S slots, D hidden size, V vocabulary.
"""

from dataclasses import replace
from typing import assert_never

import numpy as np
import onnx
from onnx import TensorProto

from blockwright.compile.checkpoint import Weights
from blockwright.compile.contrib import ContribOperators
from blockwright.compile.decomposed import DecomposedOperators
from blockwright.compile.embedding import CodesIn, integer_rows
from blockwright.compile.flavour import STANDARD, Flavour, Matrix, Operators, Residual, check_writable
from blockwright.compile.graph import Graph
from blockwright.compile.standard import StandardOperators
from blockwright.compile.weight_file import WeightFile
from blockwright.spec import FFN, Attention, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp

_EMBEDDING = "model.embed_tokens.weight"
_LINE_VALUES = 16
"""fp32 numbers in a line of the caches, 64 bytes of all processors that ONNX Runtime is built for but Apple's."""


def decoder_graph(
    model: Model,
    weights: Weights,
    num_positions: int,
    flavour: Flavour = STANDARD,
    store: WeightFile | None = None,
) -> onnx.ModelProto:
    """Builds the whole decoder.

    Args:
        model: the spec; its formats say how each matrix is stored.
        weights: the checkpoint.
        num_positions: positions to tabulate; no token may come later.
        flavour: in which operators.
        store: takes the weights, one by one; None to have them in the graph.

    Raises:
        InputError: the flavour has no operator for the model.
    """
    ops = _operators(model, flavour, Graph(store=store, activations=flavour.activations, opset=flavour.opset))
    graph = ops.graph
    graph.input("ids", "int64", ["batch", "tokens"])
    graph.input("last", "int64", ["batch"])
    x = _add_layers(ops, weights, _add_embedding(ops, weights, flavour.codes_in), num_positions)
    index_B1 = graph.node("Unsqueeze", ["last", graph.constant("one", np.array([1]))], "last_column")
    last_BD = graph.node("GatherND", [x, index_B1], "last_hidden", batch_dims=1)
    normed_BD = ops.norm("model.norm", last_BD, weights["model.norm.weight"])
    _add_head(ops, normed_BD, weights)
    return graph.model()


def stack_graph(
    model: Model,
    weights: Weights,
    num_positions: int,
    flavour: Flavour = STANDARD,
    store: WeightFile | None = None,
) -> onnx.ModelProto:
    """The layers alone, from hidden state to hidden state: what the profiler measures blocks with.

    Args:
        model: as `decoder_graph`, and the next four.
        weights: of the layers; the embedding's and the head's are not read.
        num_positions: positions to tabulate.
        flavour: in which operators; hidden states are in what it computes in.
        store: takes the weights.

    Raises:
        InputError: the flavour has no operator for the model.
    """
    ops = _operators(model, flavour, Graph(store=store, activations=flavour.activations, opset=flavour.opset))
    graph = ops.graph
    x = graph.input("hidden_in", graph.activations, ["batch", "tokens", model.hidden_size])
    x = _add_layers(ops, weights, x, num_positions)
    graph.node("Identity", [x], "hidden_out")
    graph.output("hidden_out", graph.activations, ["batch", "tokens", model.hidden_size])
    return graph.model()


def _operators(model: Model, flavour: Flavour, graph: Graph) -> Operators:
    check_writable(model, flavour.name)
    match flavour.name:
        case "standard":
            return StandardOperators(graph, model, "slots" if flavour.slots is None else flavour.slots)
        case "contrib":
            return ContribOperators(graph, model, flavour.accuracy_level)
        case "decomposed":
            assert flavour.slots is not None, "the slots' part of all weights is cut out by their number"
            return DecomposedOperators(graph, model, flavour.slots)
        case _:
            assert_never(flavour.name)


def _add_layers(ops: Operators, weights: Weights, x: str, num_positions: int) -> str:
    """Adds all layers behind the value `x` and returns the name of what leaves them."""
    if any(isinstance(block.mixer, Attention) for block in ops.model.layers):
        ops.declare_attention_inputs(num_positions)
    residual = Residual(value=x)
    for index, block in enumerate(ops.model.layers):
        residual = _add_mixer(ops, index, block.mixer, residual, weights)
        residual = _add_ffn(ops, index, block.ffn, residual, weights)
    return ops.add(residual)


def _add_mixer(ops: Operators, index: int, mixer: Mixer, residual: Residual, weights: Weights) -> Residual:
    prefix = f"model.layers.{index}"
    if isinstance(mixer, NoOp):
        return residual
    norm_name = f"{prefix}.input_layernorm"
    residual, normed = ops.norm_of_sum(norm_name, residual, weights[f"{norm_name}.weight"])
    match mixer:
        case Attention():
            projections = [_projection(ops.model, weights, f"{prefix}.self_attn.{name}", mixer) for name in "qkv"]
            flat = ops.attention(index, mixer, normed, projections)
            mixed = _linear(ops, weights, f"{prefix}.self_attn.o_proj", mixer, flat)
        case LinearMixer():
            mixed = _linear(ops, weights, f"{prefix}.self_attn.linear_attn", mixer, normed)
        case _:
            assert_never(mixer)
    return Residual(value=residual.value, addend=mixed, name=f"{prefix}.mixed")


def _add_ffn(ops: Operators, index: int, ffn: FFN, residual: Residual, weights: Weights) -> Residual:
    prefix = f"model.layers.{index}"
    if isinstance(ffn, NoOp):
        return residual
    norm_name = f"{prefix}.post_attention_layernorm"
    residual, normed = ops.norm_of_sum(norm_name, residual, weights[f"{norm_name}.weight"])
    match ffn:
        case GatedFFN():
            graph, matrices = ops.graph, [_matrix(weights, f"{prefix}.mlp.{name}_proj", ffn) for name in ("gate", "up")]
            gate, up = ops.gate_and_up(normed, matrices)
            opened = graph.node("Mul", [gate, graph.node("Sigmoid", [gate], f"{prefix}.sigmoid")], f"{prefix}.silu")
            channels = graph.node("Mul", [opened, up], f"{prefix}.channels")
            fed = _linear(ops, weights, f"{prefix}.mlp.down_proj", ffn, channels)
        case LinearFFN():
            fed = _linear(ops, weights, f"{prefix}.mlp.linear_mlp", ffn, normed)
        case _:
            assert_never(ffn)
    return Residual(value=residual.value, addend=fed, name=f"{prefix}.fed")


def _add_embedding(ops: Operators, weights: Weights, codes_in: CodesIn) -> str:
    """Adds the tokens' rows."""
    graph, model = ops.graph, ops.model
    if model.embedding_weights.group_size is not None:
        return integer_rows(graph, weights[_EMBEDDING], model.embedding_weights, "ids", codes_in)
    table = graph.stored("embedding", weights[_EMBEDDING], model.embedding_weights)
    if graph.is_wide(table):
        return graph.node("Gather", [table, "ids"], "embedded")
    return graph.node("Cast", [graph.node("Gather", [table, "ids"], "rows")], "embedded", to=TensorProto.FLOAT)


def _add_head(ops: Operators, x_BD: str, weights: Weights) -> None:
    graph, model = ops.graph, ops.model
    logits = "logits" if graph.activations == "float32" else "logits.half"
    name = _EMBEDDING if model.has_tied_embeddings else "lm_head.weight"
    if model.head_format.group_size is not None:
        ops.linear(Matrix(name="head", weight_NK=weights[name], bias_N=None, weights=model.head_format), x_BD, logits)
    else:
        is_shared = model.is_head_the_embedding
        stored = "embedding" if is_shared else graph.stored("head", weights[name], model.head_format)
        graph.node("Gemm", [x_BD, graph.widened("head.wide", stored)], logits, transB=1)
    if logits != "logits":
        graph.node("Cast", [logits], "logits", to=TensorProto.FLOAT)
    graph.output("logits", "float32", ["batch", model.vocab_size])


def _linear(
    ops: Operators, weights: Weights, name: str, part: Attention | LinearMixer | GatedFFN | LinearFFN, x: str
) -> str:
    return ops.linear(_matrix(weights, name, part), x, f"{name}.projected")


def _projection(model: Model, weights: Weights, name: str, mixer: Attention) -> Matrix:
    """The matrix of queries, keys or values, with the norm over each head that comes behind it."""
    is_normed = model.has_qk_norm and not name.endswith(".v")
    norm = weights[f"{name}_norm.weight"].astype(np.float32) if is_normed else None
    return replace(_matrix(weights, f"{name}_proj", mixer), norm=norm)


def _matrix(weights: Weights, name: str, part: Attention | LinearMixer | GatedFFN | LinearFFN) -> Matrix:
    bias_N = weights.get(f"{name}.bias")
    return Matrix(
        name=name,
        weight_NK=_inputs_first(weights[f"{name}.weight"].astype(np.float32, copy=False)),
        bias_N=None if bias_N is None else bias_N.astype(np.float32),
        weights=part.weights,
    )


def _inputs_first(weight_NK: np.ndarray) -> np.ndarray:
    """The same matrix, in memory input by input, as graphs store it.

    In steps of a cache line, for numpy's own way through a matrix of 64 MB takes five times as long.
    """
    weight_KN = np.empty(weight_NK.shape[::-1], dtype=weight_NK.dtype)
    for start in range(0, len(weight_NK), _LINE_VALUES):
        weight_KN[:, start : start + _LINE_VALUES] = weight_NK[start : start + _LINE_VALUES].T
    return weight_KN.T
