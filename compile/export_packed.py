"""Checkpoints of safetensors for vLLM, SGLang, TensorRT-LLM and transformers: plain, or compressed-tensors.

The source's own files are kept: configuration, tokenizer, and the modelling file of a child. Plain matrices change
their type only. Matrices of integers are packed as the compressed-tensors library packs them (``pack-quantized``): our
own codes, eight of 4 bits or four of 8 bits to an int32, one fp16 scale per group. Embedding, head, norms and biases
are in fp16 there.

Shapes: N outputs by K inputs, G groups of inputs, P packed words of a row.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from blockwright.compile.blocked import quantise_blocks
from blockwright.compile.checkpoint import Weights
from blockwright.compile.export_numbers import as_type, scale_error
from blockwright.files import read_json, write_json
from blockwright.spec import Format, Model, NoOp

SHARD_BYTES = 2**30
"""The most that is held, and the size of a file, but for tensors that are larger."""

_KEPT = ("*.py", "*.jinja", "*.model", "merges.txt", "vocab.json", "special_tokens_map.json")
_KEPT_JSON = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

_TYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_BITS = {"int4": 4, "int8": 8}
_PLAIN = Format(name="fp16")


@dataclass(slots=True)
class _Worst:
    """The largest error that fp16 scales added to a matrix, so far."""

    error: float = 0.0


def write_checkpoint(model: Model, weights: Weights, source: Path, folder: Path) -> float:
    """Writes the checkpoint into an existing folder, a file at a time.

    Args:
        model: each matrix in the format that it says.
        weights: the source's.
        source: the checkpoint that it is made of.
        folder: an existing, empty folder.

    Returns:
        The largest error, over all matrices, that rounding scales to fp16 added (see `scale_error`).
    """
    for file in sorted(found for name in (*_KEPT, *_KEPT_JSON) for found in source.glob(name)):
        shutil.copyfile(file, folder / file.name)
    formats = matrix_formats(model)
    plain = _TYPES["fp16" if any(stored.group_size for stored in formats.values()) else model.embedding_weights.name]
    worst = _Worst()
    _save(_stored(weights, formats, plain, worst), folder)
    config = read_json(source / "config.json")
    config["dtype"] = next(_TORCH_NAMES[name] for name, kind in _TYPES.items() if kind == plain)
    config.pop("torch_dtype", None)
    if quantization := quantization_config(formats):
        config["quantization_config"] = quantization
    write_json(folder / "config.json", config)
    return worst.error


def matrix_formats(model: Model) -> dict[str, Format]:
    """The formats of the layers' matrices, by the beginnings of their names."""
    found: dict[str, Format] = {}
    for index, block in enumerate(model.layers):
        for name, part in (("self_attn", block.mixer), ("mlp", block.ffn)):
            if not isinstance(part, NoOp):
                found[f"model.layers.{index}.{name}."] = part.weights
    return found


def quantization_config(formats: dict[str, Format]) -> dict[str, Any] | None:
    """What config.json says of matrices of integers, in the words of compressed-tensors; None where there are none."""
    stored = sorted({weights for weights in formats.values() if weights.group_size}, key=str)
    if not stored:
        return None
    groups = {}
    for number, weights in enumerate(stored):
        prefixes = [name for name, own in formats.items() if own == weights]
        is_all = len(stored) == 1 and len(prefixes) == len(formats)
        scheme = {
            "num_bits": _BITS[weights.name],
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": weights.group_size,
            "dynamic": False,
        }
        targets = ["Linear"] if is_all else ["re:" + prefix.replace(".", r"\.") + ".*" for prefix in prefixes]
        groups[f"group_{number}"] = {"targets": targets, "weights": scheme}
    plain = ["re:" + name.replace(".", r"\.") + ".*" for name, weights in formats.items() if not weights.group_size]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", *plain],
    }


def packed(codes_NK: np.ndarray, bits: int) -> np.ndarray:
    """Codes side by side in int32 words, the first in the lowest bits, as numbers from 0 upwards."""
    per_word = 32 // bits
    num_words = -(-codes_NK.shape[1] // per_word)
    raised = np.zeros((len(codes_NK), num_words * per_word), dtype=np.uint32)
    raised[:, : codes_NK.shape[1]] = codes_NK.astype(np.int32) + 2 ** (bits - 1)
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    words_NP = np.bitwise_or.reduce(raised.reshape(len(codes_NK), num_words, per_word) << shifts, axis=-1)
    return words_NP.view(np.int32)


def _stored(weights: Weights, formats: dict[str, Format], plain: Any, worst: _Worst) -> Iterator[dict[str, np.ndarray]]:
    """What each tensor of the source becomes."""
    for name in weights:
        value = weights[name]
        stored = next((own for prefix, own in formats.items() if name.startswith(prefix)), _PLAIN)
        if value.ndim != 2 or stored.group_size is None:
            yield {name: as_type(name, value, plain)}
            continue
        codes_KN, scales_GN = quantise_blocks(value.astype(np.float32).T, stored)
        worst.error = max(worst.error, scale_error(codes_KN, scales_GN))
        yield {
            f"{name}_packed": packed(codes_KN.T, _BITS[stored.name]),
            f"{name}_scale": np.ascontiguousarray(scales_GN.T.astype(np.float16)),
            f"{name}_shape": np.array(value.shape, dtype=np.int64),
        }


def _save(tensors: Iterator[dict[str, np.ndarray]], folder: Path) -> None:
    """Shards and their index; one file, without an index, where all fits into it."""
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for group in tensors:
        size = sum(tensor.nbytes for tensor in group.values())
        if held and size + sum(tensor.nbytes for tensor in held.values()) > SHARD_BYTES:
            flush()
        held |= group
        total += size
    flush()
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    names = names if len(names) > 1 else ["model.safetensors"]
    for number, name in enumerate(names):
        (folder / f"shard-{number}").rename(folder / name)
    if len(names) > 1:
        places = {tensor: name for name, held_names in zip(names, shards, strict=True) for tensor in held_names}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
