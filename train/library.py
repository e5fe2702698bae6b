"""The block library: every candidate of every layer, from one pass of the parent where memory allows.

A library is trained in groups (`train/groups.py` chooses them). For each batch the parent runs from the embeddings, or
from states that the group before left on disk, through the group's layers; each layer's states feed all that learns
there and are then dropped. So the memory is that of the group's weights and optimisers and of one layer's states,
whatever the number of tokens.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from blockwright.library import BlockEntry, Entry
from blockwright.model.walk import Walk
from blockwright.spec import Candidate
from blockwright.train.bld import Known, Trainee, counts_of, first_weights, look, on_device, precision_of, student_layer
from blockwright.train.boundaries import Boundary
from blockwright.train.calibration import calibrate
from blockwright.train.groups import Schedule, Work, layers_flops, training_flops
from blockwright.train.initialise import AS_PUBLISHED, Seen
from blockwright.train.one_group import LibraryJob, Span, train_group
from blockwright.train.students import Student
from blockwright.train.trained import Trained

_LEAST_TIMING_S = 0.3
_MOST_TIMED_STEPS = 20


def train_library(
    model: PreTrainedModel,
    job: LibraryJob,
    plan: Schedule,
    folder: Path,
    on_step: Callable[[int, int], None] = lambda group, step: None,
) -> list[Trained]:
    """Trains everything, group by group, and writes each trainee's weights and what became of it.

    Args:
        model: the parent, frozen; its weights are left as they are.
        job: what to train, on what and how.
        plan: the groups.
        folder: for results and unfinished work; a killed run in it is gone on with, bit for bit.
        on_step: called with the group and the steps done after each step of all that learns in it.

    Returns:
        What became of each trainee, in the order of the groups.
    """
    nn.Module.to(model.requires_grad_(False), job.device)
    calibrate(model, job.parent, job.init, job.training, job.trainees, folder)
    trained: list[Trained] = []
    for index, group in enumerate(plan.groups):
        span = _span(job, plan, index, folder)
        part = replace(job, trainees=group.trainees)
        trained += train_group(model, part, folder, span, lambda step, index=index: on_step(index, step))
        if plan.keeps_states and _first(plan, index + 1) != group.first:
            _boundary(job, group.first, folder).remove()
    return trained


def entries_of(trained: Sequence[Trained]) -> tuple[tuple[Entry, ...], tuple[BlockEntry, ...]]:
    """What the library's index says of candidates, and of pairs that were trained together."""
    entries: list[Entry] = []
    blocks: list[BlockEntry] = []
    for result in trained:
        errors = {
            "file": result.file,
            "initial_nmse": result.initial_nmse,
            "nmse": result.nmse,
            "initial_delta_nmse": result.initial_delta_nmse,
            "delta_nmse": result.delta_nmse,
            "trained_nmse": result.trained_nmse,
            "trained_delta_nmse": result.trained_delta_nmse,
            "kept": result.kept,
            "stopped_at": result.stopped_at,
        }
        trainee = result.trainee
        if len(trainee.parts) == 1:
            [part] = trainee.parts
            candidate = Candidate(layer=trainee.layer, part=part, variant=getattr(trainee.block, part))
            entries.append(Entry(candidate=candidate, **errors))
        else:
            blocks.append(BlockEntry(layer=trainee.layer, block=trainee.block, **errors))
    return tuple(entries), tuple(blocks)


def measured_flops_per_s(model: PreTrainedModel, job: LibraryJob) -> float:
    """The speed of training, from a few steps of one trainee of each kind, the parent's layer included."""
    nn.Module.to(model.requires_grad_(False), job.device)
    batch = on_device(job.training[0], model.device)
    work = Work(num_steps=1, batch_windows=len(batch.ids_BT), window_tokens=batch.ids_BT.shape[1])
    walk, counts_BT = Walk(model, batch.segments_BT), counts_of(batch, job.settings.skip_first_tokens)
    kinds = {(t.parts, type(t.block.mixer), type(t.block.ffn)): t for t in job.trainees}
    flops, seconds = 0.0, 0.0
    for trainee in kinds.values():
        student = _untrained(model, job, trainee)
        per_step = training_flops(job.parent, trainee, work)
        per_step += layers_flops(job.parent, trainee.layer, trainee.layer + 1, work.window_tokens)
        began, spent = math.inf, 0.0
        for step in itertools.count():
            with precision_of(job.settings, model.device):
                seen = look(walk, trainee.layer, walk.embed(batch.ids_BT), counts_BT)
            student.learn(walk, seen)
            _wait(model)
            if step == 0:  # warm-up
                began = time.perf_counter()
                continue
            spent = time.perf_counter() - began
            if spent > _LEAST_TIMING_S / len(kinds) or step == _MOST_TIMED_STEPS:
                flops, seconds = flops + step * per_step * work.batch_tokens, seconds + spent
                break
    return flops / seconds


def _untrained(model: PreTrainedModel, job: LibraryJob, trainee: Trainee) -> Student:
    """A student that begins anyhow: how fast it learns does not hang on it."""
    down = model.model.layers[trainee.layer].get_submodule("mlp.down_proj").get_parameter("weight")
    known = Known(seen=Seen(ranking_W=torch.ones(down.shape[1])), init=AS_PUBLISHED, starts={})
    weights = first_weights(model, job.parent, trainee, known)
    return Student(trainee, student_layer(model, job.parent, trainee, weights), job.settings, _MOST_TIMED_STEPS + 1)


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _first(plan: Schedule, index: int) -> int | None:
    return plan.groups[index].first if index < len(plan.groups) else None


def _span(job: LibraryJob, plan: Schedule, index: int, folder: Path) -> Span:
    """Where a group's states come from and go to: a boundary stands before every group but those of layer 0."""
    group, following = plan.groups[index], _first(plan, index + 1)
    if not plan.keeps_states:
        return Span(first=group.first, end=group.end)
    reads = _boundary(job, group.first, folder) if group.first else None
    writes = _boundary(job, following, folder) if following and following != group.first else None
    return Span(
        first=group.first,
        end=max(group.end, following or 0) if writes is not None else group.end,
        reads=reads if reads is not None and reads.is_whole() else None,
        writes=writes,
        writes_layer=-1 if following is None else following,
    )


def _boundary(job: LibraryJob, layer: int, folder: Path) -> Boundary:
    num_windows, num_tokens = job.training[0].ids_BT.shape
    return Boundary(folder, layer, (len(job.training), num_windows, num_tokens, job.parent.hidden_size))
