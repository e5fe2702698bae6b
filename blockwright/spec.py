"""What a model is, without any tensor: the words that every room shares.

A model is its shared dimensions and a tuple of blocks, one per layer. A block is a mixer and an ffn,
each one of a closed set of variants. All of it is frozen, compared and hashed by value, so that specs
serve as keys; a change is made by `dataclasses.replace`. Loads neither torch nor anything of ours but
the strict reader.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, assert_never, get_args

from blockwright.errors import InputError
from blockwright.strict import from_data, to_data

SCHEMA_VERSION = 1

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
"""Transformers' ``model_type`` of the parents whose decoder layer we know: pre-norm attention, pre-norm gated ffn."""


FormatName = Literal["fp32", "fp16", "bf16", "int8", "int4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How weights are stored: plain numbers, or integers with one scale per group of inputs."""

    name: FormatName
    group_size: int | None = None
    """Weights along the input that share a scale; integer formats only."""

    def __post_init__(self) -> None:
        if self.name not in get_args(FormatName):
            raise ValueError("one of the formats " + ", ".join(get_args(FormatName)))
        if (self.name in ("int8", "int4")) != (self.group_size is not None):
            raise ValueError("a group size for int8 and int4, none for the others")
        if self.group_size is not None and (self.group_size < 16 or math.log2(self.group_size) % 1):
            raise ValueError("a group size that is a power of two and at least 16")

    def __str__(self) -> str:
        return self.name if self.group_size is None else f"{self.name}-g{self.group_size}"


FP32 = Format(name="fp32")
FP16 = Format(name="fp16")

HEAD_BESIDE_INTEGERS = Format(name="int8", group_size=32)
"""The head's format in a model of int4 or int8 layers: its rounding error goes straight into the logits."""


_WRITTEN = {"int8": ("int8-g32",), "int4": ("int4-g32", "int4-g64", "int4-g128")}
"""Groups that are mostly asked for; others may be."""


def format_words(names: Sequence[FormatName]) -> str:
    """Formats as they are written on the command line."""
    words = [word for name in names for word in _WRITTEN.get(name, (name,))]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def parse_format(text: str, among: Sequence[FormatName] = ("fp32", "int8", "int4")) -> Format:
    """Reads a format as `str` writes it: ``fp32``, ``int4-g32``; ``int4`` alone means groups of 32.

    Args:
        text: what to read.
        among: what is offered in place of a format that is none; others are read too.

    Raises:
        InputError: there is no such format.
    """
    name, separator, group = text.partition("-g")
    try:
        size = int(group) if separator else 32 if name.startswith("int") else None
        return Format(name=name, group_size=size)  # type: ignore[arg-type]
    except (ValueError, KeyError) as error:
        raise InputError(
            "format", got=repr(text), expected=format_words(among), remedy="Choose one of these."
        ) from error


@dataclass(frozen=True, slots=True)
class Full:
    """Every earlier token is attended to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The nearest tokens only, the token itself included."""

    num_tokens: int


Reach = Full | Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Softmax attention whose query heads share `num_kv_heads` key-value heads (Ainslie et al. 2023)."""

    num_kv_heads: int
    reach: Reach = Full()
    weights: Format = FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMixer:
    """One matrix in place of attention: a token sees itself only (Puzzle, arXiv 2411.19146, appendix A)."""

    weights: Format = FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedFFN:
    """down(activation(gate(x)) · up(x)) with `width` channels."""

    width: int
    weights: Format = FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearFFN:
    """One matrix in place of the gated ffn (Puzzle, arXiv 2411.19146, appendix A)."""

    weights: Format = FP32


@dataclass(frozen=True, slots=True)
class NoOp:
    """Nothing: the residual passes through, and the norm before it goes too."""


Mixer = Attention | LinearMixer | NoOp
FFN = GatedFFN | LinearFFN | NoOp
Variant = Attention | LinearMixer | GatedFFN | LinearFFN | NoOp
Part = Literal["mixer", "ffn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer."""

    mixer: Mixer
    ffn: FFN


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding, in the words of the parent's own ``rope_parameters``."""

    theta: float
    scaling: str = "default"
    """The parent's ``rope_type``."""
    parameters: tuple[tuple[str, float], ...] = ()
    """What else the scaling needs, as the parent's configuration names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder: what all layers share, and the layers."""

    family: Family
    vocab_size: int
    hidden_size: int
    num_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rope: Rope
    activation: str
    has_tied_embeddings: bool
    has_qkv_bias: bool
    has_output_bias: bool
    has_ffn_bias: bool
    has_qk_norm: bool
    embedding_weights: Format = FP32
    """Format of the token embedding, and of the head unless that has its own."""
    head_weights: Format | None = None
    """Format of the head; None for the embedding's."""
    layers: tuple[Block, ...]

    def __post_init__(self) -> None:
        for index, block in enumerate(self.layers):
            match block.mixer:
                case Attention(num_kv_heads=num_kv_heads):
                    if num_kv_heads < 1 or self.num_heads % num_kv_heads:
                        raise ValueError(f"layer {index}: {num_kv_heads} KV heads that divide {self.num_heads} heads")
                case LinearMixer() | NoOp():
                    pass
            if isinstance(block.ffn, GatedFFN) and block.ffn.width < 1:
                raise ValueError(f"layer {index}: an ffn of at least one channel")

    @property
    def head_format(self) -> Format:
        """What the head is stored in."""
        return self.embedding_weights if self.head_weights is None else self.head_weights

    @property
    def is_head_the_embedding(self) -> bool:
        """Whether the head needs no table of its own: rows of integers are looked up in one order and multiplied in
        another."""
        is_same = self.head_format == self.embedding_weights
        return self.has_tied_embeddings and is_same and self.embedding_weights.group_size is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One alternative for the mixer or the ffn of one layer."""

    layer: int
    part: Part
    variant: Variant

    @property
    def name(self) -> str:
        """A name fit for files: ``layer-03-mixer-attention-kv2``."""
        return f"layer-{self.layer:02d}-{self.part}-{variant_name(self.variant)}"


def variant_name(variant: Variant) -> str:
    """A short name that tells the variants of one layer's part from each other: ``attention-kv2``."""
    match variant:
        case Attention(num_kv_heads=num_kv_heads, reach=reach):
            return f"attention-kv{num_kv_heads}" + (f"-w{reach.num_tokens}" if isinstance(reach, Window) else "")
        case GatedFFN(width=width):
            return f"ffn-{width}"
        case LinearMixer() | LinearFFN():
            return "linear"
        case NoOp():
            return "none"
        case _:
            assert_never(variant)


def with_candidate(model: Model, candidate: Candidate) -> Model:
    """The model with one candidate in place of what stood there."""
    block = replace(model.layers[candidate.layer], **{candidate.part: candidate.variant})
    return replace(model, layers=(*model.layers[: candidate.layer], block, *model.layers[candidate.layer + 1 :]))


V = TypeVar("V", Mixer, FFN, Variant)


def stored_as(variant: V, weights: Format) -> V:
    """The variant with its weights in a format; a no-op has none."""
    return variant if isinstance(variant, NoOp) else replace(variant, weights=weights)


def with_format(model: Model, weights: Format) -> Model:
    """The model with every matrix of its layers in one format, and a head that suits it."""
    layers = tuple(
        Block(mixer=stored_as(block.mixer, weights), ffn=stored_as(block.ffn, weights)) for block in model.layers
    )
    head = weights if weights.group_size is None else HEAD_BESIDE_INTEGERS
    return replace(model, layers=layers, embedding_weights=head, head_weights=None)


def with_tables(model: Model, embedding: Format, head: Format) -> Model:
    """The model with its embedding and its head in formats; models that are stored alike are equal."""
    return replace(model, embedding_weights=embedding, head_weights=None if head == embedding else head)


def format_of_model(model: Model) -> str:
    """The format of all layers, or ``mixed``; where nothing has one, the embedding's."""
    parts = (part for block in model.layers for part in (block.mixer, block.ffn))
    formats = {str(part.weights) for part in parts if not isinstance(part, NoOp)} or {str(model.embedding_weights)}
    return formats.pop() if len(formats) == 1 else "mixed"


def model_to_data(model: Model) -> dict[str, Any]:
    """The model as JSON data, with the version of this schema."""
    return {"schema_version": SCHEMA_VERSION} | to_data(model)


def model_from_data(data: dict[str, Any], path: str = "model") -> Model:
    """Reads what `model_to_data` wrote.

    Raises:
        InputError: a field is unknown, missing or of another type, or the version is another.
    """
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}.schema_version",
            got=version,
            expected=str(SCHEMA_VERSION),
            remedy="Write the file again with this version of Blockwright.",
        )
    return from_data(Model, {key: value for key, value in data.items() if key != "schema_version"}, path)
