"""The models of a distillation: whole in one process, and among several ranks as shares only."""

import torch
from torch import nn
from transformers import PreTrainedModel

from blockwright.model.child import empty_child
from blockwright.model.parent import Parent
from blockwright.pipeline.inputs import Checkpoint, load_checkpoint
from blockwright.train.loading import empty_parent, load_shares
from blockwright.train.ranks import Ranks


def loaded(checkpoint: Checkpoint, device: torch.device, ranks: Ranks) -> PreTrainedModel:
    """A child or a parent in fp32; all ranks must ask.

    Raises:
        InputError: a weight is missing, surplus, broken or of another shape.
    """
    if ranks.world_size > 1:
        return load_shares(_empty(checkpoint), checkpoint.folder, ranks, device)
    model = load_checkpoint(checkpoint)
    nn.Module.to(model, device)  # transformers' own has no types
    return model


def as_checkpoint(parent: Parent) -> Checkpoint:
    """A parent, as `loaded` takes it."""
    return Checkpoint(folder=parent.folder, spec=parent.spec, parent=parent)


def in_precision(
    model: PreTrainedModel, checkpoint: Checkpoint, device: torch.device, ranks: Ranks, dtype: torch.dtype
) -> PreTrainedModel:
    """A model with its weights in another precision; shares are read again, for torch changes none in place."""
    if ranks.world_size > 1 and dtype != torch.float32:
        nn.Module.to(model, "meta")  # its memory first
        return load_shares(_empty(checkpoint), checkpoint.folder, ranks, device, dtype)
    nn.Module.to(model, dtype)
    return model


def _empty(checkpoint: Checkpoint) -> PreTrainedModel:
    is_child = checkpoint.parent is None
    return empty_child(checkpoint.folder, checkpoint.spec) if is_child else empty_parent(checkpoint.folder)
