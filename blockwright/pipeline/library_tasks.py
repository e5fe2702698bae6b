"""The library by workers: each task trains one group of layers and leaves files.

    calibrate ──► every group
    states entering group 1 ──► states entering group 2 ──► …      a chain of tasks, a pass of the parent in all
             └─► group 1                  └─► group 2

The parent's states go through the workers' shared memory where they fit in; where they do not (they are tokens × hidden
size numbers for each group), every group runs the parent from its embeddings, which costs passes but no memory. Files
and weights are the same either way, and those of one process.

Shapes: S steps, B windows of a batch, T tokens, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.model.parent import load_model, open_parent
from blockwright.model.walk import Walk
from blockwright.pipeline.workers import Packed, Ref, Workers
from blockwright.train.bld import Trainee, on_device, precision_of
from blockwright.train.calibration import calibrate
from blockwright.train.one_group import LibraryJob, Span, span_of, train_group
from blockwright.train.trained import Trained, facts_path, read_trained

_STORE_SHARE = 0.5
"""Of the shared memory, the most that states may take; the rest is for copies on other machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What entered one layer at every step, in shared memory."""

    states: Packed

    def read(self, step: int) -> Tensor:
        """The states of one step, x_BTD."""
        return self.states.tensor()[step].clone()


def train_by_workers(
    pool: Workers,
    parent_folder: Path,
    job: LibraryJob,
    groups: Sequence[Sequence[Trainee]],
    folder: Path,
    on_group: Callable[[int], None] = lambda num_done: None,
) -> list[Trained]:
    """Trains groups as tasks; those whose results are in the folder already are left as they are.

    Args:
        pool: who works.
        parent_folder: the parent's checkpoint; workers see it, and `folder`, under the same path.
        job: what to train, on what and how.
        groups: what each task trains; each must fit a worker's memory.
        folder: for results and unfinished work.
        on_group: called with the number of groups that are done, once at first and after each.

    Returns:
        What became of each trainee, in the order of the groups.

    Raises:
        InputError: something of the input has to be mended, or a worker was lost too often.
    """
    missing = [
        index for index, group in enumerate(groups) if not all(facts_path(folder, each).exists() for each in group)
    ]
    on_group(len(groups) - len(missing))
    folder = folder.resolve()
    if missing:
        parent, shared_job = str(parent_folder.resolve()), pool.share(job)
        ready = pool.start("calibrate", _calibrate, parent, shared_job, str(folder))
        entering = _states_entering(pool, parent, job, shared_job, sorted({_first(groups[index]) for index in missing}))
        tasks = [
            (
                index,
                pool.start(
                    f"group {index}",
                    _train,
                    parent,
                    shared_job,
                    tuple(groups[index]),
                    str(folder),
                    entering.get(_first(groups[index])),
                    ready,
                ),
            )
            for index in missing
        ]
        for num_done, _ in enumerate(pool.as_done(tasks), len(groups) - len(missing) + 1):
            on_group(num_done)
    return [read_trained(folder, trainee) for group in groups for trainee in group]


def _states_entering(
    pool: Workers, parent: str, job: LibraryJob, shared_job: Ref, layers: Sequence[int]
) -> dict[int, Ref]:
    """What enters some layers at every step, one made from the one before; nothing where it is too much."""
    per_layer = 4 * len(job.training) * job.training[0].ids_BT.numel() * job.parent.hidden_size
    wanted = [layer for layer in layers if layer > 0]
    if per_layer * len(wanted) > _STORE_SHARE * pool.store_bytes:
        return {}
    entering: dict[int, Ref] = {}
    before, states = 0, None
    for layer in wanted:
        states = pool.start(f"states entering layer {layer}", _advance, parent, shared_job, before, layer, states)
        entering[layer], before = states, layer
    return entering


def _calibrate(parent: str, job: LibraryJob, folder: str) -> None:
    calibrate(_loaded(parent, job.device), job.parent, job.init, job.training, job.trainees, Path(folder))


@torch.no_grad()
def _advance(parent: str, job: LibraryJob, first: int, end: int, entering: Packed | None) -> Packed:
    """Runs the parent's layers from `first` to `end` on all batches, from the embeddings where nothing enters."""
    model = _loaded(parent, job.device)
    left: list[Tensor] = []
    for step in range(len(job.training)):
        batch = on_device(job.training[step], model.device)
        walk = Walk(model, batch.segments_BT)
        with precision_of(job.settings, model.device):
            if entering is None:
                x_BTD = walk.embed(batch.ids_BT)
            else:
                x_BTD = Shared(states=entering).read(step).to(model.device)
            for layer in range(first, end):
                x_BTD = walk.layer(layer, x_BTD)
        left.append(x_BTD.float().cpu())
    return Packed.of(torch.stack(left))


def _train(
    parent: str, job: LibraryJob, trainees: tuple[Trainee, ...], folder: str, entering: Packed | None, ready: None
) -> None:
    span = span_of(trainees)
    if entering is not None:
        span = Span(first=span.first, end=span.end, reads=Shared(states=entering))
    train_group(_loaded(parent, job.device), replace(job, trainees=trainees), Path(folder), span)


def _first(group: Sequence[Trainee]) -> int:
    return min(trainee.layer for trainee in group)


@lru_cache(maxsize=1)
def _loaded(parent: str, device: str) -> PreTrainedModel:
    """The parent, kept for this worker's next tasks."""
    model = load_model(open_parent(parent))
    model.requires_grad_(False)
    nn.Module.to(model, device)  # transformers' own has no types
    return model
