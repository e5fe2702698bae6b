"""A checkpoint in the form that another engine loads, with export.json, which says what it is.

Everything that stands in an engine's way is found before anything is written, and told with its layer and its reason.
"""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import blockwright
from blockwright.compile.checkpoint import read_weights
from blockwright.compile.described import EXPORT_FILE
from blockwright.compile.export_genai import tokenizer_remark, write_genai
from blockwright.compile.export_gguf import write_gguf
from blockwright.compile.export_packed import matrix_formats, write_checkpoint
from blockwright.compile.export_tokenizer import gguf_tokenizer
from blockwright.compile.ggml import BLOCK
from blockwright.errors import InputError
from blockwright.files import new_folder, read_json, write_json
from blockwright.servable import NEMOTRON_NAS, STORABLE, obstacles
from blockwright.spec import (
    Attention,
    Block,
    Format,
    FormatName,
    GatedFFN,
    Model,
    NoOp,
    Variant,
    format_of_model,
    stored_as,
)
from blockwright.strict import from_data, to_data

Target = Literal["vllm", "sglang", "tensorrt-llm", "transformers", "llama.cpp", "onnxruntime-genai"]

GGUF_FILE = "model.gguf"
_SCHEMA_VERSION = 1
_FP16 = Format(name="fp16")

FORMATS: dict[Target, tuple[FormatName, ...]] = {
    "vllm": ("fp32", "fp16", "bf16", "int8", "int4"),
    "sglang": ("fp32", "fp16", "bf16", "int8", "int4"),
    "tensorrt-llm": ("fp32", "fp16", "bf16"),
    "transformers": ("fp32", "fp16", "bf16", "int8", "int4"),
    "llama.cpp": ("fp32", "fp16", "int8", "int4"),
    "onnxruntime-genai": STORABLE,
}
"""What each target's files can hold: integers as compressed-tensors, as Q8_0 and Q4_0, or as MatMulNBits has them."""

_OWN_FILES: tuple[Target, ...] = ("llama.cpp", "onnxruntime-genai")
"""Targets that load no checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What export.json says."""

    schema_version: Literal[1]
    target: Target
    format: str
    """Of the layers; ``mixed`` where they differ, as `model` says."""
    model: Model
    built_from: str
    scale_error: float
    """The largest error that scales in fp16 added to a matrix: root mean square over that of its weights."""
    files: dict[str, int]
    """Their sizes in bytes."""
    versions: dict[str, str]
    remark: str | None = None
    """What the target gets wrong beside the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOrder:
    """What to write."""

    model: Model
    """Its formats say how each matrix is stored."""
    target: Target
    is_child: bool
    """A parent's checkpoint is one that vLLM, SGLang and TensorRT-LLM know by its own name."""
    built_from: str
    """Digest of the checkpoint."""
    num_positions: int | None = None
    """Longest text, where the target's files say one; None for the checkpoint's own."""


def write_export(order: ExportOrder, checkpoint: Path, folder: Path) -> Export:
    """Writes what the target loads, whole or not at all.

    Raises:
        InputError: something stands in the target's way, or the checkpoint is broken.
    """
    check_exportable(order)
    model, target = _as_stored(order.model, order.target), order.target
    tokenizer = gguf_tokenizer(checkpoint, model.vocab_size) if target == "llama.cpp" else {}
    weights = read_weights(checkpoint)
    num_positions = model.max_positions if order.num_positions is None else order.num_positions
    with new_folder(folder) as temporary:
        error = 0.0
        if target == "llama.cpp":
            error = write_gguf(model, weights, tokenizer, temporary / GGUF_FILE)
        elif target == "onnxruntime-genai":
            write_genai(model, weights, checkpoint, temporary, num_positions)
        else:
            error = write_checkpoint(model, weights, checkpoint, temporary)
        export = Export(
            schema_version=_SCHEMA_VERSION,
            target=target,
            format=format_of_model(model),
            model=model,
            built_from=order.built_from,
            scale_error=error,
            files=_sizes(temporary),
            versions={"blockwright": blockwright.__version__, "python": platform.python_version()},
            remark=tokenizer_remark(checkpoint) if target == "onnxruntime-genai" else None,
        )
        write_json(temporary / EXPORT_FILE, to_data(export))
    return export


def read_export(folder: Path) -> Export:
    """Reads what was written.

    Raises:
        InputError: there is none, or a file of it is missing or cut short.
    """
    export = from_data(Export, read_json(folder / EXPORT_FILE), str(folder / EXPORT_FILE))
    found = _sizes(folder)
    for name, size in export.files.items():
        if found.get(name) != size:
            raise InputError(
                str(folder / name),
                got="no such file" if name not in found else f"{found[name]} bytes",
                expected=f"{size} bytes",
                remedy="The export is incomplete: compile it again.",
            )
    return export


def check_exportable(order: ExportOrder) -> None:
    """Refuses what the target cannot load.

    Raises:
        InputError: names every layer and reason.
    """
    knows_parents = order.target in NEMOTRON_NAS and not order.is_child
    found = [] if knows_parents else obstacles(order.model, order.target)
    found += _format_obstacles(order.model, order.target)
    if found:
        raise InputError(
            f"--target {order.target}",
            got="; ".join(found),
            expected=f"a checkpoint that {order.target} can load",
            remedy="Compile for another target or in another format, or search with --servable-by.",
        )


def _format_obstacles(model: Model, target: Target) -> list[str]:
    found = []
    if model.embedding_weights.name not in FORMATS[target]:
        found.append(f"the embedding in {model.embedding_weights} is not written, only {', '.join(FORMATS[target])}")
    if model.head_format != model.embedding_weights:
        found.append(
            f"the head in {model.head_format} is not written beside the embedding in {model.embedding_weights}"
        )
    if target == "llama.cpp" and model.embedding_weights.group_size and model.hidden_size % BLOCK:
        found.append(f"the embedding: {model.hidden_size} channels are no multiple of {BLOCK}")
    for index, block in enumerate(model.layers):
        for part in (block.mixer, block.ffn):
            if isinstance(part, NoOp):
                continue
            inputs = [model.hidden_size]
            inputs += [model.num_heads * model.head_dim] if isinstance(part, Attention) else []
            inputs += [part.width] if isinstance(part, GatedFFN) else []
            reason = _why_not(part.weights, inputs, target)
            found += [f"layer {index}: {reason}"] if reason else []
    if target not in _OWN_FILES:
        plain = {str(weights) for weights in matrix_formats(model).values() if not weights.group_size}
        found += [f"layers in {' and '.join(sorted(plain))} side by side"] if len(plain) > 1 else []
    return list(dict.fromkeys(found))


def _why_not(weights: Format, inputs: list[int], target: Target) -> str | None:
    if weights.name not in FORMATS[target]:
        return f"{weights} is not written, only {', '.join(FORMATS[target])}"
    if weights.group_size is None or target == "onnxruntime-genai":
        return None
    if target == "llama.cpp" and weights.group_size % BLOCK:
        return f"groups of {weights.group_size} do not fill the blocks of {BLOCK} of Q8_0 and Q4_0"
    odd = [width for width in inputs if width % weights.group_size]
    return f"{odd[0]} channels are no multiple of the group of {weights.group_size}" if odd else None


def _as_stored(model: Model, target: Target) -> Model:
    """What stands in the files: beside integers, compressed-tensors keep everything else in fp16."""
    if target in _OWN_FILES or not any(weights.group_size for weights in matrix_formats(model).values()):
        return model
    layers = tuple(
        Block(
            mixer=stored_as(block.mixer, _beside_integers(block.mixer)),
            ffn=stored_as(block.ffn, _beside_integers(block.ffn)),
        )
        for block in model.layers
    )
    return replace(model, layers=layers, embedding_weights=_FP16)


def _beside_integers(part: Variant) -> Format:
    return _FP16 if isinstance(part, NoOp) or part.weights.group_size is None else part.weights


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.glob("*")) if file.name != EXPORT_FILE}
