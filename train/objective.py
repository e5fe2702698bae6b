"""What the child minimises on some windows: it does not care how the models are spread, nor what steps are made of it.

Shapes: B windows of a batch, T tokens, D hidden size, N = B·T.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from blockwright.model.walk import Walk
from blockwright.train.chunked_kl import NO_LABEL, Head, Targets, TopK, chunked_losses
from blockwright.train.losses import (
    COMPARED_LOGITS,
    OF_LOGITS,
    OF_STATES,
    Losses,
    check_layer_map,
    even_layer_map,
    state_losses,
)
from blockwright.train.windows import Batch

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
TopOf = Callable[[Batch], TopK]
"""Looks up what the parent says of some windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """How a child is held against its parent."""

    losses: Losses
    layer_map: tuple[int, ...] | None = None
    """For each layer of the child the parent's that its states are held against; None for evenly spread ones."""
    recomputes_activations: bool = False
    """Keeps the states between layers only, and runs each layer again on the way back."""
    precision: Precision = "fp32"
    """Of products; weights, sums and logarithms stay in fp32."""

    @property
    def needs_parent(self) -> bool:
        """Whether the parent has to run even where its next tokens are looked up."""
        return bool(self.losses.among(OF_STATES))


def valid_of(batch: Batch) -> Tensor | None:
    """Which tokens count, by window: those whose segment is not below 0, which is padding. None for all."""
    segments_BT = batch.segments_BT
    return None if segments_BT is None or (segments_BT >= 0).all() else segments_BT >= 0


def labels_of(batch: Batch) -> Tensor:
    """The next token of each, where that belongs to the same document."""
    labels_BT = torch.full_like(batch.ids_BT, NO_LABEL)
    labels_BT[:, :-1] = batch.ids_BT[:, 1:]
    if batch.segments_BT is not None:
        before_BT, after_BT = batch.segments_BT[:, :-1], batch.segments_BT[:, 1:]
        labels_BT[:, :-1].masked_fill_((before_BT != after_BT) | (before_BT < 0), NO_LABEL)
    return labels_BT


def counts_of(batch: Batch) -> Tensor:
    """How many tokens count, and how many have a next one."""
    valid_BT = valid_of(batch)
    num_valid = batch.ids_BT.numel() if valid_BT is None else int(valid_BT.sum())
    return torch.tensor([num_valid, int((labels_of(batch) != NO_LABEL).sum())], device=batch.ids_BT.device)


def parts_of(batch: Batch, num_parts: int) -> list[Batch]:
    """The windows in so many parts of nearly one size; fewer where there are not so many."""
    num_parts = min(num_parts, len(batch.ids_BT))
    ids = batch.ids_BT.tensor_split(num_parts)
    segments = [None] * num_parts if batch.segments_BT is None else batch.segments_BT.tensor_split(num_parts)
    return [Batch(ids_BT=some, segments_BT=own) for some, own in zip(ids, segments, strict=True)]


def objective_loss(
    child: PreTrainedModel,
    parent: PreTrainedModel | None,
    objective: Objective,
    batch: Batch,
    counts: tuple[int, int],
    top: TopK | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of some windows, as their share of the mean over all that `counts` counts.

    Args:
        child: gets gradients.
        parent: frozen; None where neither its states nor its logits are needed.
        objective: the loss.
        batch: the windows, on the models' device.
        counts: valid tokens, and tokens with a next one, of all ranks and parts of the batch.
        top: what the parent says, where that was looked up.

    Returns:
        The weighted sum, and the value of each term.
    """
    dtype = DTYPES[objective.precision]
    is_low, keeps_copies = objective.precision != "fp32", not objective.recomputes_activations
    with torch.autocast(batch.ids_BT.device.type, dtype, is_low, cache_enabled=keeps_copies):
        x_BTD, y_BTD, of_states = _states(child, parent, objective, batch, needs_logits=top is None)
        h_ND = child.model.norm(x_BTD).flatten(0, 1)
        said: Head | TopK | None = top
        if parent is not None and y_BTD is not None and top is None:
            with torch.no_grad():
                g_ND = parent.model.norm(y_BTD).flatten(0, 1).to(dtype)
                said = Head(g_ND=g_ND, u_VD=parent.lm_head.weight.to(dtype))
    num_tokens, num_labels = max(1, counts[0]), max(1, counts[1])
    values = {name: value / num_tokens for name, value in of_states.items()}
    loss = sum(
        (weight * values[name] for name, weight in objective.losses.among(OF_STATES).items()), h_ND.new_zeros(())
    )
    if objective.losses.among(OF_LOGITS):
        valid_BT = valid_of(batch)
        targets = Targets(
            parent=said,
            num_tokens=num_tokens,
            valid_N=None if valid_BT is None else valid_BT.flatten(),
            labels_N=labels_of(batch).flatten(),
            num_labels=num_labels,
        )
        of_logits, found = chunked_losses(h_ND, child.lm_head.weight, targets, objective.losses, dtype=dtype)
        loss, values = loss + of_logits, values | found
    return loss, torch.stack([values[name].detach() for name in objective.losses.names])


def _states(
    child: PreTrainedModel, parent: PreTrainedModel | None, objective: Objective, batch: Batch, *, needs_logits: bool
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """What leaves the last layer of each, and the sums of the terms that compare states on the way."""
    student = Walk(child, batch.segments_BT)
    x_BTD = student.embed(batch.ids_BT)
    names, num_layers = tuple(objective.losses.among(OF_STATES)), len(student.layers)
    teacher, y_BTD, layer_map, done = None, None, (0,) * num_layers, 0
    if parent is not None and (names or (needs_logits and objective.losses.among(COMPARED_LOGITS))):
        teacher = Walk(parent, batch.segments_BT)
        layer_map = objective.layer_map or even_layer_map(num_layers, len(teacher.layers))
        check_layer_map(layer_map, num_layers, len(teacher.layers))
        with torch.no_grad():
            y_BTD = teacher.embed(batch.ids_BT)
    sums, valid_BT = [x_BTD.new_zeros(()) for _ in names], valid_of(batch)
    for layer in range(num_layers):
        if teacher is not None and y_BTD is not None:
            y_BTD, done = _advance(teacher, y_BTD, done, layer_map[layer] + 1), layer_map[layer] + 1

        def run(x_BTD: Tensor, y_BTD: Tensor | None, layer: int = layer) -> tuple[Tensor, ...]:
            x_BTD = student.layer(layer, x_BTD)
            return x_BTD, *([] if y_BTD is None else state_losses(names, x_BTD, y_BTD, valid_BT))

        if objective.recomputes_activations and torch.is_grad_enabled():
            outputs = checkpoint(run, x_BTD, y_BTD, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(outputs, tuple)
        else:
            outputs = run(x_BTD, y_BTD)
        x_BTD, *found = outputs
        sums = [total + value for total, value in zip(sums, found, strict=True)] if found else sums
    if teacher is not None and y_BTD is not None and needs_logits:
        y_BTD = _advance(teacher, y_BTD, done, len(teacher.layers))
    return x_BTD, y_BTD, dict(zip(names, sums, strict=True))


@torch.no_grad()
def _advance(teacher: Walk, y_BTD: Tensor, start: int, end: int) -> Tensor:
    for layer in range(start, end):
        y_BTD = teacher.layer(layer, y_BTD)
    return y_BTD
