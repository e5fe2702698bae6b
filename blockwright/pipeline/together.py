"""A stage that several ranks run together: the first locks, prints and writes, the others only work."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.model.child import build_child, load_weights
from blockwright.pipeline.console import Advance, progress
from blockwright.pipeline.stage import Stage, running
from blockwright.spec import Model
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import whole


@contextlib.contextmanager
def running_together(stage: Stage, ranks: Ranks) -> Iterator[Path]:
    """As `running`, which the first rank does for all; the others begin when the folder is there.

    Raises:
        InputError: as `running`.
    """
    with running(stage) if ranks.is_first else contextlib.nullcontext(stage.work) as work:
        ranks.sum(torch.zeros(()))  # a meeting point: nobody reads before the folder is cleared
        yield work


@contextlib.contextmanager
def progress_of_first(ranks: Ranks, description: str, total: int) -> Iterator[Advance]:
    """As `progress`, on the first rank only."""
    if ranks.is_first:
        with progress(description, total) as advance:
            yield advance
    else:
        yield _silent


def gathered(child: PreTrainedModel, spec: Model, ranks: Ranks) -> PreTrainedModel:
    """The whole child again on the CPU, whose weights ranks have shares of; all ranks must ask. Alone, itself."""
    if ranks.world_size == 1:
        return child
    weights: dict[str, Tensor] = {}
    for name, parameter in child.named_parameters():
        tensor = whole(parameter.detach())
        if ranks.is_first:
            weights[name] = tensor.cpu()
    return load_weights(build_child(spec, child.config), weights) if ranks.is_first else child


def _silent(text: str | None = None, *, to: int | None = None) -> None:
    pass
