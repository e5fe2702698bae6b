"""How a model's weights are stored for TensorRT, and what stands in the way.

TensorRT keeps int4 in groups, and nothing else that is narrower than what it computes in: of three matrices in int8 it
multiplied two out to fp16 (TensorRT-RTX 1.7.1, by the size of the plan). So layers and head are in fp16, bf16 or int4.
The token embedding is looked up, not multiplied: it may be int8 or int4 too, in words that arithmetic takes apart
(`compile/embedding.py`). What layers are refused stands in `blockwright/servable_tensorrt.py`, for searches to keep to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.compile.graph import Activations
from blockwright.errors import InputError
from blockwright.servable_tensorrt import LARGEST_GROUP, format_obstacle, network_obstacles
from blockwright.spec import (
    FP16,
    FP32,
    Attention,
    Format,
    FormatName,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    with_format,
    with_tables,
)

BF16 = Format(name="bf16")
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


def check_choices(
    formats: Sequence[Format], remedy: str = "Search twice, once with each, and compare the plans."
) -> None:
    """Refuses formats that layers of one network cannot be chosen among.

    Raises:
        InputError: fp16 and bf16 are both there.
    """
    if {FP16, BF16} <= set(formats):
        raise InputError(
            "--format",
            got="fp16 and bf16",
            expected="one of them, with int4 beside it or without: a TensorRT network computes in one of them",
            remedy=remedy,
        )


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
    model = model if weights is None else with_format(model, weights)
    found = _fp32_obstacles(model)
    narrow = [(index, part) for index, part in _parts(model) if part.weights != FP32]
    found += [f"layer {index}: {reason}" for index, part in narrow if (reason := format_obstacle(model, part))]
    found += network_obstacles(model)
    if found:
        raise InputError(
            "--format" if weights is not None else "plan: child",
            got="; ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else ""),
            expected="fp16 or bf16, or int4 in groups of 16, 32, 64 or 128 that divide a matrix's inputs",
            remedy="Compile with --format fp16, int4-g64 or int4-g128, or int4-g32 for TensorRT-RTX, whichever fits.",
        )
    names = {part.weights.name for _, part in _parts(model)}
    is_brain = "bf16" in names or (not names and model.embedding_weights == BF16)
    plain = BF16 if is_brain else FP16
    head, embedding = (None if each == plain else each for each in (head, embedding))
    _check_table("--head", head, ("int4",), model.hidden_size, plain)
    _check_table("--embedding", embedding, ("int8", "int4"), model.hidden_size, plain)
    return Stored(
        model=with_tables(model, embedding or plain, head or plain),
        activations="bfloat16" if is_brain else "float16",
    )


def _check_table(
    option: str, weights: Format | None, known: Sequence[FormatName], num_channels: int, plain: Format
) -> None:
    if weights is None:
        return
    size = weights.group_size
    if weights.name not in known or size is None or size > LARGEST_GROUP or num_channels % size:
        raise InputError(
            option,
            got=f"{weights}, for {num_channels} channels",
            expected=f"{plain}, or {' or '.join(known)} in groups of 16, 32, 64 or 128 that divide the channels",
            remedy=f"Choose such a group, or leave it out for {plain}, which the layers compute in.",
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
