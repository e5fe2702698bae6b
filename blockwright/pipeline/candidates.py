"""The candidates of a library as they will be stored: in which formats, and as layers with rounded weights in place."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.compile.blocked import NUMBERS, rounded
from blockwright.compile.export_numbers import as_type
from blockwright.library import Library
from blockwright.model.child import layer_with, part_weights
from blockwright.search.offered import in_formats
from blockwright.search.scores import format_of
from blockwright.spec import FP32, Candidate, Format, Model, NoOp, stored_as
from blockwright.tensors import read_tensors


def candidates_in(library: Library, formats: Sequence[Format]) -> tuple[Candidate, ...]:
    """Every candidate of a library in every format that its layer may have; a no-op once.

    Raises:
        InputError: a layer may have none of the formats.
    """
    return in_formats(library.candidates, formats, library.formats)


def key_of(candidate: Candidate) -> str:
    """A name that also tells a variant's formats from each other: ``layer-03-ffn-ffn-96-int4-g32``."""
    return "-".join(filter(None, (candidate.name, format_of(candidate))))


def is_own(candidate: Candidate, parent: Model) -> bool:
    """Whether a candidate is the parent's own part, stored as the parent has it."""
    return candidate.variant == getattr(parent.layers[candidate.layer], candidate.part)


def candidate_layers(
    model: PreTrainedModel, library: Library, folder: Path, candidates: Iterable[Candidate]
) -> dict[Candidate, nn.Module]:
    """The parent's layers with every candidate in place that changes anything.

    Args:
        model: the parent.
        library: the index of its candidates.
        folder: where their files are.
        candidates: of the library, in any formats.

    Raises:
        InputError: a candidate's file is broken.
    """
    files = {entry.candidate: folder / entry.file for entry in library.entries}
    layers: dict[Candidate, nn.Module] = {}
    for candidate in candidates:
        if is_own(candidate, library.parent):
            continue
        trained = replace(candidate, variant=stored_as(candidate.variant, FP32))
        weights: dict[str, Tensor] = {}
        if trained in files:
            weights = read_tensors(files[trained])
        elif is_own(trained, library.parent):
            weights = part_weights(model.model.layers[candidate.layer], candidate.part)
        if not isinstance(candidate.variant, NoOp):
            weights = stored(weights, candidate.variant.weights, candidate.name)
        layers[candidate] = layer_with(model, library.parent, candidate, weights)
    return layers


def stored(weights: dict[str, Tensor], weights_format: Format, whose: str) -> dict[str, Tensor]:
    """Weights as they come back after an engine has stored them: matrices are rounded, norms and biases are not.

    What is computed with them is not rounded: engines that compute in fp16 or bf16 lose a little more.

    Args:
        weights: by name.
        weights_format: of matrices.
        whose: the candidate's name, for the error.

    Raises:
        InputError: a weight is too large for the format.
    """
    if weights_format == FP32:
        return weights
    return {
        name: _rounded(f"{whose} {name}", tensor, weights_format) if tensor.ndim == 2 else tensor
        for name, tensor in weights.items()
    }


def _rounded(name: str, weight_NK: Tensor, weights_format: Format) -> Tensor:
    numbers_NK = weight_NK.float().numpy()
    if weights_format.group_size is None:
        return torch.from_numpy(as_type(name, numbers_NK, NUMBERS[weights_format.name]).astype(np.float32))
    # An engine's groups run along the inputs, torch's second dimension.
    return torch.from_numpy(np.ascontiguousarray(rounded(numbers_NK.T, weights_format).T))
