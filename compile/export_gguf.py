"""A GGUF file of a child: what llama.cpp loads, alone, with its tokenizer.

Children whose layers are all the same are of its architecture ``llama``; the others are ``deci``, which has numbers of
heads and channels per layer. Layers with neither mixer nor ffn are left out: ``deci`` knows them, but returns the wrong
rows where one is the last. Both architectures rotate neighbouring channels where transformers rotates halves, so rows
of queries and keys are permuted; that moves whole outputs, and no code of a quantised matrix changes.

Shapes: N outputs, K inputs, H heads, D head size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from blockwright.compile.checkpoint import Weights
from blockwright.compile.export_numbers import as_type
from blockwright.compile.ggml import BLOCK, BLOCK_BYTES, pack_matrix
from blockwright.errors import InputError
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    format_of_model,
)

_TYPES = {"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
"""ggml's names for our formats."""

_FILE_TYPES = {"fp32": 0, "fp16": 1, "int4": 2, "int8": 7}
"""llama.cpp's numbers for what most of a file is in (`llama_ftype`); it only prints them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """One tensor of the file, and how it is made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    weights: Format
    source: str
    num_heads: int | None = None
    """Of queries or keys, whose rows are permuted; None for all else."""


def write_gguf(model: Model, weights: Weights, tokenizer: Mapping[str, Any], path: Path) -> float:
    """Writes the file, one tensor at a time.

    Args:
        model: what to write, each matrix in the format that it says; must have no obstacle to llama.cpp.
        weights: the checkpoint.
        tokenizer: from `gguf_tokenizer`.
        path: the file.

    Returns:
        The largest error, over all matrices, that rounding scales to fp16 added (see `scale_error`).

    Raises:
        InputError: the package gguf is missing, or a weight.
    """
    gguf = _package()
    writer = gguf.GGUFWriter(path, architecture(model))
    _add_settings(writer, model)
    for name, value in tokenizer.items():
        _add_value(writer, name, value)
    tensors = list(_tensors(model, weights))
    for tensor in tensors:
        ggml_type = gguf.GGMLQuantizationType[_TYPES[tensor.weights.name]]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), _num_bytes(tensor), raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    worst = 0.0
    for tensor in tensors:
        stored, error = _stored(tensor, model, weights)
        writer.write_tensor_data(stored)
        worst = max(worst, error)
    writer.close()
    return worst


def architecture(model: Model) -> str:
    """llama.cpp's name for models of this kind."""
    shapes = {_shape(block) for block in live_layers(model).values()}
    is_same = len(shapes) == 1 and all(isinstance(part, int) for part in next(iter(shapes)))
    return "llama" if is_same else "deci"


def live_layers(model: Model) -> dict[int, Block]:
    """The layers that do anything, by their places in the model; they move up in the file."""
    return {i: b for i, b in enumerate(model.layers) if not (isinstance(b.mixer, NoOp) and isinstance(b.ffn, NoOp))}


def llama3_factors(rope: Rope, head_dim: int) -> np.ndarray:
    """By what Llama 3.1 slows each frequency, a tensor in GGUF: 1 for short waves, the factor for long ones."""
    parameters = dict(rope.parameters)
    factor, length = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    waves = 2 * np.pi * rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
    share = np.clip((length / waves - low) / (high - low), 0, 1)  # of the unslowed frequency
    return (1 / ((1 - share) / factor + share)).astype(np.float32)


def _package() -> Any:
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "--target llama.cpp",
            got="no package gguf here",
            expected="the package that writes GGUF files",
            remedy="Install it: pip install 'blockwright[gguf]'.",
        ) from error
    return gguf


def _add_value(writer: Any, name: str, value: Any) -> None:
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
    add[type(value)](name, value)


def _shape(block: Block) -> tuple[int | None, int | None]:
    kv_heads = block.mixer.num_kv_heads if isinstance(block.mixer, Attention) else None
    return kv_heads, block.ffn.width if isinstance(block.ffn, GatedFFN) else None


def _add_settings(writer: Any, model: Model) -> None:
    layers = list(live_layers(model).values())
    heads = [0 if isinstance(block.mixer, NoOp) else model.num_heads for block in layers]
    kv_heads, widths = zip(*((kv or 0, width or 0) for kv, width in map(_shape, layers)), strict=True)
    is_same = architecture(model) == "llama"
    writer.add_head_count(heads[0] if is_same else heads)
    writer.add_head_count_kv(kv_heads[0] if is_same else list(kv_heads))
    writer.add_feed_forward_length(widths[0] if is_same else list(widths))
    writer.add_block_count(len(layers))
    writer.add_context_length(model.max_positions)
    writer.add_embedding_length(model.hidden_size)
    writer.add_vocab_size(model.vocab_size)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope.theta)
    writer.add_file_type(_FILE_TYPES.get(format_of_model(model).partition("-")[0], 0))
    _add_rope_scaling(writer, model)


def _add_rope_scaling(writer: Any, model: Model) -> None:
    parameters = dict(model.rope.parameters)
    match model.rope.scaling:
        case "linear":
            writer.add_string(f"{architecture(model)}.rope.scaling.type", "linear")
            writer.add_rope_scaling_factor(parameters["factor"])
        case "yarn":
            writer.add_string(f"{architecture(model)}.rope.scaling.type", "yarn")
            writer.add_rope_scaling_factor(parameters["factor"])
            length = parameters.get("original_max_position_embeddings", model.max_positions)
            writer.add_rope_scaling_orig_ctx_len(int(length))
            for name in ("beta_fast", "beta_slow"):
                if name in parameters:
                    writer.add_float32(f"{architecture(model)}.rope.scaling.yarn_{name}", parameters[name])
        case _:
            pass  # default needs nothing, llama3 is a tensor


def _tensors(model: Model, weights: Weights) -> Iterator[_Tensor]:
    hidden, vocab = model.hidden_size, model.vocab_size
    yield _Tensor(
        name="token_embd.weight",
        shape=(vocab, hidden),
        weights=model.embedding_weights,
        source="model.embed_tokens.weight",
    )
    if model.rope.scaling == "llama3":
        yield _Tensor(name="rope_freqs.weight", shape=(model.head_dim // 2,), weights=FP32, source="")
    for place, (index, block) in enumerate(live_layers(model).items()):
        yield from _layer_tensors(model, block, f"blk.{place}", f"model.layers.{index}", weights)
    yield _Tensor(name="output_norm.weight", shape=(hidden,), weights=FP32, source="model.norm.weight")
    if not model.has_tied_embeddings:
        yield _Tensor(
            name="output.weight", shape=(vocab, hidden), weights=model.embedding_weights, source="lm_head.weight"
        )


def _layer_tensors(model: Model, block: Block, to: str, source: str, weights: Weights) -> Iterator[_Tensor]:
    hidden, inner = model.hidden_size, model.num_heads * model.head_dim
    matrices: list[tuple[str, str, tuple[int, int], Format, int | None]] = []
    match block.mixer:
        case Attention(num_kv_heads=num_kv_heads, weights=stored):
            kv = num_kv_heads * model.head_dim
            matrices += [
                ("attn_q", "self_attn.q_proj", (inner, hidden), stored, model.num_heads),
                ("attn_k", "self_attn.k_proj", (kv, hidden), stored, num_kv_heads),
                ("attn_v", "self_attn.v_proj", (kv, hidden), stored, None),
                ("attn_output", "self_attn.o_proj", (hidden, inner), stored, None),
            ]
        case LinearMixer(weights=stored):
            matrices.append(("attn_output", "self_attn.linear_attn", (hidden, hidden), stored, None))
        case NoOp():
            pass
        case _:
            assert_never(block.mixer)
    match block.ffn:
        case GatedFFN(width=width, weights=stored):
            matrices += [
                ("ffn_gate", "mlp.gate_proj", (width, hidden), stored, None),
                ("ffn_up", "mlp.up_proj", (width, hidden), stored, None),
                ("ffn_down", "mlp.down_proj", (hidden, width), stored, None),
            ]
        case LinearFFN():
            raise AssertionError("an obstacle to llama.cpp")
        case NoOp():
            pass
        case _:
            assert_never(block.ffn)
    norms = (("attn_norm", "input_layernorm", block.mixer), ("ffn_norm", "post_attention_layernorm", block.ffn))
    for name, own, part in norms:
        if not isinstance(part, NoOp):
            yield _Tensor(name=f"{to}.{name}.weight", shape=(hidden,), weights=FP32, source=f"{source}.{own}.weight")
    for name, own, shape, stored, heads in matrices:
        yield _Tensor(
            name=f"{to}.{name}.weight", shape=shape, weights=stored, source=f"{source}.{own}.weight", num_heads=heads
        )
        if f"{source}.{own}.bias" in weights:
            yield _Tensor(
                name=f"{to}.{name}.bias",
                shape=shape[:1],
                weights=FP32,
                source=f"{source}.{own}.bias",
                num_heads=heads,
            )


def _num_bytes(tensor: _Tensor) -> int:
    size = int(np.prod(tensor.shape))
    if tensor.weights.group_size is None:
        return size * (2 if tensor.weights.name == "fp16" else 4)
    return size // BLOCK * BLOCK_BYTES[tensor.weights.name]


def _stored(tensor: _Tensor, model: Model, weights: Weights) -> tuple[np.ndarray, float]:
    """What stands in the file, and the error that fp16 scales added."""
    if not tensor.source:
        return llama3_factors(model.rope, model.head_dim), 0.0
    value = weights[tensor.source].astype(np.float32)
    if tensor.num_heads is not None:
        value = permuted(value, tensor.num_heads)
    if tensor.weights.group_size is not None:
        return pack_matrix(value, tensor.weights)
    return as_type(tensor.source, value, np.float16 if tensor.weights.name == "fp16" else np.float32), 0.0


def permuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of queries or keys so that channels which rotate together, D/2 apart in transformers, are neighbours."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
