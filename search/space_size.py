"""What a space comes to, counted before anything trains.

Floating-point operations are those of matrices: two per number and token forward, two more for the gradient of the
input and two for that of the weights. The parent runs once for all candidates; a mixer candidate is followed by the
parent's ffn, forward and back, and an ffn candidate comes after everything else (`train/library.py`).
"""

import math
from dataclasses import dataclass
from typing import assert_never

from blockwright.count import ffn_matrices, ffn_vectors, mixer_matrices, mixer_vectors
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import (
    Attention,
    Candidate,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Part,
    Variant,
    variant_name,
)

_BYTES_PER_TRAINED = 16
"""fp32 weight, gradient and AdamW's two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceRow:
    """What is offered for one part of one layer, the parent's own first."""

    layer: int
    part: Part
    variants: tuple[str, ...]
    parameters: tuple[int, ...]
    """Of each, the norm before it included."""
    formats: tuple[str, ...]
    """That may be chosen; none for all that are scored."""
    num_trained: int
    trained_parameters: int
    training_flops_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSize:
    """What a space comes to."""

    rows: tuple[SpaceRow, ...]
    parent_flops_per_token: int
    """Of the one pass that all candidates learn from."""
    num_children_log10: float
    """How many children there are to choose from, as a power of ten; formats aside."""

    @property
    def num_candidates(self) -> int:
        """All of them, the parent's own parts included."""
        return sum(len(row.variants) for row in self.rows)

    @property
    def num_trained(self) -> int:
        """Those that have weights of their own."""
        return sum(row.num_trained for row in self.rows)

    @property
    def trained_parameters(self) -> int:
        """Of all candidates that are trained."""
        return sum(row.trained_parameters for row in self.rows)

    @property
    def library_bytes(self) -> int:
        """On disk, in fp32."""
        return 4 * self.trained_parameters

    @property
    def training_bytes(self) -> int:
        """To train all candidates at once with AdamW; layers are trained in groups where that does not fit."""
        return _BYTES_PER_TRAINED * self.trained_parameters

    @property
    def training_flops_per_token(self) -> int:
        """To train all candidates, the parent's pass included."""
        return self.parent_flops_per_token + sum(row.training_flops_per_token for row in self.rows)


def describe_space(parent: Model, space: SpaceSettings) -> SpaceSize:
    """Counts the candidates of every layer and what they cost to train.

    Raises:
        InputError: a number is none that the parent's layer could have.
    """
    of_part: dict[tuple[int, Part], list[Candidate]] = {}
    for candidate in candidates(parent, space):
        of_part.setdefault((candidate.layer, candidate.part), []).append(candidate)
    rows = [_row(parent, space, found) for found in of_part.values()]
    matrices = [mixer_matrices(parent, b.mixer) + ffn_matrices(parent, b.ffn) for b in parent.layers]
    return SpaceSize(
        rows=tuple(rows),
        parent_flops_per_token=2 * sum(_size(layer) for layer in matrices),
        num_children_log10=sum(math.log10(len(row.variants)) for row in rows),
    )


def _matrices(parent: Model, variant: Variant) -> int:
    """Numbers in a candidate's matrices."""
    match variant:
        case Attention() | LinearMixer():
            return _size(mixer_matrices(parent, variant))
        case GatedFFN() | LinearFFN():
            return _size(ffn_matrices(parent, variant))
        case NoOp():
            return 0
        case _:
            assert_never(variant)


def _vectors(parent: Model, variant: Variant) -> int:
    """Numbers of a candidate outside its matrices, the norm before it included."""
    match variant:
        case Attention() | LinearMixer():
            return mixer_vectors(parent, variant)
        case GatedFFN() | LinearFFN():
            return ffn_vectors(parent, variant)
        case NoOp():
            return 0
        case _:
            assert_never(variant)


def _row(parent: Model, space: SpaceSettings, offered: list[Candidate]) -> SpaceRow:
    layer, part = offered[0].layer, offered[0].part
    own = getattr(parent.layers[layer], part)
    matrices = [_matrices(parent, candidate.variant) for candidate in offered]
    counts = [size + _vectors(parent, c.variant) for size, c in zip(matrices, offered, strict=True)]
    trained = [i for i, c in enumerate(offered) if not isinstance(c.variant, NoOp) and c.variant != own]
    behind = 4 * _size(ffn_matrices(parent, parent.layers[layer].ffn)) if part == "mixer" else 0
    return SpaceRow(
        layer=layer,
        part=part,
        variants=tuple(variant_name(candidate.variant) for candidate in offered),
        parameters=tuple(counts),
        formats=tuple(map(str, space.formats_of(layer))),
        num_trained=len(trained),
        trained_parameters=sum(counts[index] for index in trained),
        training_flops_per_token=sum(6 * matrices[index] + behind for index in trained),
    )


def _size(matrices: list[tuple[int, int]]) -> int:
    return sum(inputs * outputs for inputs, outputs in matrices)
