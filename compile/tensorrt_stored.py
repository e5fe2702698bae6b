"""How a model's weights are stored for TensorRT, and what stands in the way.

TensorRT keeps int4 in groups, and nothing else that is narrower than what it computes in: of three matrices in int8 it
multiplied two out to fp16 (TensorRT-RTX 1.7.1, by the size of the plan). Groups of 256 were kept in one network and not
in another; those of up to 128 always. So layers and head
are in fp16, bf16 or int4. The token embedding is looked up, not multiplied: it may be int8 or int4 too, in words that
arithmetic takes apart (`compile/embedding.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from blockwright.compile.graph import Activations
from blockwright.count import ffn_matrices, mixer_matrices
from blockwright.errors import InputError
from blockwright.spec import (
    FP16,
    Attention,
    Format,
    FormatName,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    with_format,
)

BF16 = Format(name="bf16")
LARGEST_GROUP = 128
FORMATS: tuple[FormatName, ...] = ("fp16", "bf16", "int4")
"""Of layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A model as TensorRT has it."""

    model: Model
    activations: Activations

    @property
    def is_all_int4(self) -> bool:
        """No layer has a matrix in anything else."""
        return all(part.weights.name == "int4" for _, part in _parts(self.model))

    @property
    def _has_int4(self) -> bool:
        stored = [self.model.head_format, *(part.weights for _, part in _parts(self.model))]
        return any(weights.name == "int4" for weights in stored)

    @property
    def narrow(self) -> tuple[str, ...]:
        """What older GPUs have no arithmetic for."""
        return ("int4",) * self._has_int4 + ("bf16",) * (self.activations == "bfloat16")


def stored_for_tensorrt(
    model: Model, weights: Format | None, head: Format | None = None, embedding: Format | None = None
) -> Stored:
    """The model as TensorRT keeps it.

    Args:
        model: the spec.
        weights: of all layers; None to store each as the model says.
        head: int4, beside any layers; None for what the layers compute in.
        embedding: int8 or int4; None for what the layers compute in.

    Raises:
        InputError: TensorRT does not keep a layer's format; names the layers. Or that of head or embedding.
    """
    _check_table("--head", head, ("int4",), model.hidden_size)
    _check_table("--embedding", embedding, ("int8", "int4"), model.hidden_size)
    model = model if weights is None else with_format(model, weights)
    found = _fp32_obstacles(model)
    found += [f"layer {index}: {reason}" for index, part in _parts(model) if (reason := _obstacle(model, part))]
    names = {part.weights.name for _, part in _parts(model)}
    if {"fp16", "bf16"} <= names:
        found.append("fp16 and bf16 in one network")
    if found:
        raise InputError(
            "--format" if weights is not None else "plan: child",
            got="; ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else ""),
            expected="fp16 or bf16, or int4 in groups of 16, 32, 64 or 128 that divide a matrix's inputs",
            remedy="Compile with --format fp16, int4-g32, int4-g64 or int4-g128, whichever fits the widths.",
        )
    is_brain = "bf16" in names or (not names and model.embedding_weights == BF16)
    plain = BF16 if is_brain else FP16
    own_head = head or (plain if embedding else None)
    return Stored(
        model=replace(model, embedding_weights=embedding or plain, head_weights=own_head),
        activations="bfloat16" if is_brain else "float16",
    )


def _check_table(option: str, weights: Format | None, known: Sequence[FormatName], num_channels: int) -> None:
    if weights is None:
        return
    size = weights.group_size
    if weights.name not in known or size is None or size > LARGEST_GROUP or num_channels % size:
        raise InputError(
            option,
            got=f"{weights}, for {num_channels} channels",
            expected=f"{' or '.join(known)} in groups of 16, 32, 64 or 128 that divide the channels",
            remedy="Choose such a group, or leave it out: then it is in fp16 or bf16, what TensorRT computes in.",
        )


def _parts(model: Model) -> list[tuple[int, Attention | LinearMixer | GatedFFN | LinearFFN]]:
    return [
        (index, part)
        for index, block in enumerate(model.layers)
        for part in (block.mixer, block.ffn)
        if not isinstance(part, NoOp)
    ]


def _fp32_obstacles(model: Model) -> list[str]:
    """One sentence for all layers, for they share a reason."""
    layers = {index: part for index, part in _parts(model) if part.weights.name == "fp32"}
    is_all = layers.keys() == dict(_parts(model)).keys()
    where = "all layers" if is_all else ("layers " if len(layers) > 1 else "layer ") + ", ".join(map(str, layers))
    return [f"fp32 in {where}, where TensorRT's attention computes in fp16 or bf16 only"] if layers else []


def _obstacle(model: Model, part: Attention | LinearMixer | GatedFFN | LinearFFN) -> str | None:
    weights, word = part.weights, "a mixer" if isinstance(part, Attention | LinearMixer) else "an ffn"
    match weights.name:
        case "fp16" | "bf16" | "fp32":  # of fp32 `_fp32_obstacles` tells
            return None
        case "int8":
            return f"{word} in {weights}, which TensorRT multiplies out to fp16"
        case "int4":
            pass
        case _:
            assert_never(weights.name)
    assert weights.group_size is not None, "int4 has one"
    if weights.group_size > LARGEST_GROUP:
        return f"{word} in {weights}, which TensorRT does not always keep"
    matrices = mixer_matrices(model, part) if isinstance(part, Attention | LinearMixer) else ffn_matrices(model, part)
    odd = [inputs for inputs, _ in matrices if inputs % weights.group_size]
    return f"{word} in {weights} with {odd[0]} inputs, which is no whole number of groups" if odd else None
