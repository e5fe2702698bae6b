"""The decoder graph, from a spec and its weights, with a key-value cache per attention layer.

One graph serves prefill and decode. The caller owns the cache: buffers of S slots per sequence that the graph
updates and returns, and a mask that says which slots each new token may see.

    ids_BT, positions_BT      tokens and their positions
    write_index_B             the slot where the first new token's keys and values go
    last_B                    which of the T tokens to return logits for
    mask_B1TS                 True where a token may look; one input per reach that the layers have
    past_key_i, past_value_i  (B, KV heads, S, head size) for every attention layer i, and present_… as outputs
    logits_BV

Only standard operators of opset 24, no control flow: ONNX Runtime and TensorRT take the same file.
Layers without attention own no cache tensors; layers without anything leave no node.

Shapes: B batch, T new tokens, S slots, D hidden size, H heads, V vocabulary.
"""

from collections.abc import Mapping
from typing import assert_never

import numpy as np
import onnx

from blockwright.compile.graph import Graph
from blockwright.compile.rotary import rotary_tables
from blockwright.spec import FFN, Attention, Full, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp, Reach, Window

Weights = Mapping[str, np.ndarray]
"""A checkpoint's tensors by their names; matrices are (outputs, inputs)."""


def decoder_graph(model: Model, weights: Weights, num_positions: int) -> onnx.ModelProto:
    """Builds the whole decoder.

    Args:
        model: the spec; its formats say how each matrix is stored.
        weights: the checkpoint.
        num_positions: positions to tabulate; no token may come later.
    """
    graph = Graph()
    graph.input("ids", "int64", ["batch", "tokens"])
    graph.input("last", "int64", ["batch"])
    _declare_attention_inputs(graph, model, num_positions)
    embedding_VD = weights["model.embed_tokens.weight"]
    x = graph.node("Gather", [graph.constant("embedding", embedding_VD.astype(np.float32)), "ids"], "embedded")
    for index in range(len(model.layers)):
        x = add_layer(graph, model, index, x, weights)
    index_B1 = graph.node("Unsqueeze", ["last", graph.constant("one", np.array([1]))], "last_column")
    last_BD = graph.node("GatherND", [x, index_B1], "last_hidden", batch_dims=1)
    normed_BD = _norm(graph, "model.norm", last_BD, weights["model.norm.weight"], model.norm_eps)
    _add_head(graph, model, normed_BD, weights)
    return graph.model()


def stack_graph(model: Model, weights: Weights, num_positions: int) -> onnx.ModelProto:
    """The layers alone, from hidden state to hidden state: what the profiler measures blocks with."""
    graph = Graph()
    x = graph.input("hidden_in", "float32", ["batch", "tokens", model.hidden_size])
    _declare_attention_inputs(graph, model, num_positions)
    for index in range(len(model.layers)):
        x = add_layer(graph, model, index, x, weights)
    graph.node("Identity", [x], "hidden_out")
    graph.output("hidden_out", "float32", ["batch", "tokens", model.hidden_size])
    return graph.model()


def mask_name(reach: Reach) -> str:
    """The mask input that layers of a reach share."""
    match reach:
        case Full():
            return "mask"
        case Window(num_tokens=num_tokens):
            return f"mask_window_{num_tokens}"
        case _:
            assert_never(reach)


def add_layer(graph: Graph, model: Model, index: int, x: str, weights: Weights) -> str:
    """Adds one layer behind the value `x` and returns the name of what leaves it."""
    block = model.layers[index]
    x = _add_mixer(graph, model, index, block.mixer, x, weights)
    return _add_ffn(graph, model, index, block.ffn, x, weights)


def _declare_attention_inputs(graph: Graph, model: Model, num_positions: int) -> None:
    reaches = {block.mixer.reach: None for block in model.layers if isinstance(block.mixer, Attention)}
    if not reaches:
        return
    graph.input("positions", "int64", ["batch", "tokens"])
    graph.input("write_index", "int64", ["batch"])
    for reach in reaches:
        graph.input(mask_name(reach), "bool", ["batch", 1, "tokens", "slots"])
    cosines, sines = rotary_tables(model.rope, model.head_dim, num_positions)
    graph.constant("cosines", cosines)
    graph.constant("sines", sines)


def _add_mixer(graph: Graph, model: Model, index: int, mixer: Mixer, x: str, weights: Weights) -> str:
    prefix = f"model.layers.{index}"
    if isinstance(mixer, NoOp):
        return x
    normed = _norm(graph, f"{prefix}.input_layernorm", x, weights[f"{prefix}.input_layernorm.weight"], model.norm_eps)
    match mixer:
        case Attention():
            mixed = _attention(graph, model, index, mixer, normed, weights)
        case LinearMixer():
            mixed = _linear(graph, f"{prefix}.self_attn.linear_attn", normed, weights, mixer)
        case _:
            assert_never(mixer)
    return graph.node("Add", [x, mixed], f"{prefix}.mixed")


def _add_ffn(graph: Graph, model: Model, index: int, ffn: FFN, x: str, weights: Weights) -> str:
    prefix = f"model.layers.{index}"
    if isinstance(ffn, NoOp):
        return x
    norm_name = f"{prefix}.post_attention_layernorm"
    normed = _norm(graph, norm_name, x, weights[f"{norm_name}.weight"], model.norm_eps)
    match ffn:
        case GatedFFN():
            gate = _linear(graph, f"{prefix}.mlp.gate_proj", normed, weights, ffn)
            up = _linear(graph, f"{prefix}.mlp.up_proj", normed, weights, ffn)
            opened = graph.node("Mul", [gate, graph.node("Sigmoid", [gate], f"{prefix}.sigmoid")], f"{prefix}.silu")
            channels = graph.node("Mul", [opened, up], f"{prefix}.channels")
            fed = _linear(graph, f"{prefix}.mlp.down_proj", channels, weights, ffn)
        case LinearFFN():
            fed = _linear(graph, f"{prefix}.mlp.linear_mlp", normed, weights, ffn)
        case _:
            assert_never(ffn)
    return graph.node("Add", [x, fed], f"{prefix}.fed")


def _attention(graph: Graph, model: Model, index: int, mixer: Attention, x: str, weights: Weights) -> str:
    prefix = f"model.layers.{index}.self_attn"
    head_dim, num_kv_heads = model.head_dim, mixer.num_kv_heads
    heads = {"q": model.num_heads, "k": num_kv_heads, "v": num_kv_heads}
    states: dict[str, str] = {}
    for name, num_heads in heads.items():
        projected = _linear(graph, f"{prefix}.{name}_proj", x, weights, mixer)
        shape = graph.constant(f"shape_{num_heads}_heads", np.array([0, 0, num_heads, head_dim]))
        state = graph.node("Reshape", [projected, shape], f"{prefix}.{name}_heads")
        if model.has_qk_norm and name != "v":
            norm_name = f"{prefix}.{name}_norm"
            state = _norm(graph, norm_name, state, weights[f"{norm_name}.weight"], model.norm_eps)
        states[name] = graph.node("Transpose", [state], f"{prefix}.{name}_BHTD", perm=[0, 2, 1, 3])
    for name in ("q", "k"):
        rotated = [states[name], "cosines", "sines", "positions"]
        states[name] = graph.node("RotaryEmbedding", rotated, f"{prefix}.{name}_rotated")
    for name, word in (("k", "key"), ("v", "value")):
        shape = ["batch", num_kv_heads, "slots", head_dim]
        past = graph.input(f"past_{word}_{index}", "float32", shape)
        updated = [past, states[name], "write_index"]
        states[name] = graph.node("TensorScatter", updated, f"present_{word}_{index}", axis=2, mode="linear")
        graph.output(f"present_{word}_{index}", "float32", shape)
    attended = graph.node(
        "Attention",
        [states["q"], states["k"], states["v"], mask_name(mixer.reach)],
        f"{prefix}.attended",
        scale=head_dim**-0.5,
    )
    by_token = graph.node("Transpose", [attended], f"{prefix}.by_token", perm=[0, 2, 1, 3])
    flat_shape = graph.constant("shape_flat", np.array([0, 0, model.num_heads * head_dim]))
    flat = graph.node("Reshape", [by_token, flat_shape], f"{prefix}.flat")
    return _linear(graph, f"{prefix}.o_proj", flat, weights, mixer)


def _add_head(graph: Graph, model: Model, x_BD: str, weights: Weights) -> None:
    name = "model.embed_tokens.weight" if model.has_tied_embeddings else "lm_head.weight"
    head_VD = weights[name]
    if model.embedding_weights.group_size is not None:
        matrix = graph.matrix("head", head_VD.T, model.embedding_weights)
        graph.node("MatMul", [x_BD, matrix], "logits")
    else:
        shared = "embedding" if model.has_tied_embeddings else graph.constant("head", head_VD.astype(np.float32))
        graph.node("Gemm", [x_BD, shared], "logits", transB=1)
    graph.output("logits", "float32", ["batch", model.vocab_size])


def _linear(
    graph: Graph, name: str, x: str, weights: Weights, part: Attention | LinearMixer | GatedFFN | LinearFFN
) -> str:
    return graph.linear(name, x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), part.weights)


def _norm(graph: Graph, name: str, x: str, weight: np.ndarray, eps: float) -> str:
    scale = graph.constant(f"{name}.weight", weight.astype(np.float32))
    return graph.node("RMSNormalization", [x, scale], f"{name}.normed", axis=-1, epsilon=eps)
