"""One group of students: whoever is trained at once, from one pass of the parent.

A group is what is trained at once. For each batch the parent runs from the embeddings, or from states that the group
before left on disk, through the group's layers; each layer's states feed all that learns there and are then dropped.
So the memory is that of the group's weights and optimisers and of one layer's states, whatever the number of tokens;
`train/groups.py` counts it and chooses the groups.

All that a group needs is plain data and all that it leaves is files, so groups may run in any order, in other processes
and on other machines. Beside the weights of each student stands a file with its errors and its curve; students that
have those are not trained again, and those with a state go on at their own step.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.model.walk import Walk
from blockwright.spec import Candidate, Model
from blockwright.train.bld import (
    BldSettings,
    Known,
    LayerBatch,
    Trainee,
    counts_of,
    first_weights,
    look,
    on_device,
    precision_of,
    run_trainee,
    squared_error,
    student_layer,
)
from blockwright.train.boundaries import Boundary
from blockwright.train.calibration import calibrate, read_seen
from blockwright.train.initialise import InitSettings
from blockwright.train.students import Errors, Student
from blockwright.train.trained import Trained, facts_path, read_trained, state_path, write_result
from blockwright.train.windows import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryJob:
    """What is trained, on what and how; may be sent to other processes."""

    parent: Model
    trainees: tuple[Trainee, ...]
    training: Sequence[Batch]
    """One for each step, all of one shape; the same for all that learns."""
    reserved: Sequence[Batch]
    """Of the training text too, but nothing learns from them: by them is chosen which weights are kept."""
    held_out: Sequence[Batch]
    """To tell errors by, no more: a child will be judged by this text."""
    settings: BldSettings
    init: InitSettings = field(default_factory=InitSettings)
    """How candidates begin."""
    starts: Mapping[Candidate, Path] = field(default_factory=dict)
    """Files of candidates that were trained alone, for pairs to begin with."""
    device: str = "cpu"
    checkpoint_steps: int = 200
    """A kill loses at most so many steps."""


class Entering(Protocol):
    """What enters one layer at every step, from wherever it is kept."""

    def read(self, step: int) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The layers that a group runs, and whether states come from disk and go there."""

    first: int
    end: int
    reads: Entering | None = None
    """What enters `first`; None where the parent runs from the embeddings."""
    writes: Boundary | None = None
    """Where the states go that enter `writes_layer`."""
    writes_layer: int = -1


def train_group(
    model: PreTrainedModel,
    job: LibraryJob,
    folder: Path,
    span: Span | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Trained]:
    """Trains all trainees of a job at once, goes on with what was begun, and writes the results.

    Args:
        model: the parent; its weights are left as they are.
        job: what is trained.
        folder: for results and unfinished work; a killed run in it is gone on with.
        span: where the parent's states come from and go to; None for the embeddings and nowhere.
        on_step: called after each step with the steps done.

    Raises:
        InputError: even the first weights of a trainee give no numbers.
    """
    nn.Module.to(model.requires_grad_(False), job.device)
    span = span_of(job.trainees) if span is None else span
    missing = [trainee for trainee in job.trainees if not facts_path(folder, trainee).exists()]
    if missing:
        students = _open_students(model, job, missing, folder)
        _train(model, job, students, span, folder, on_step)
        _judge(model, job, students, folder)
        for student in students:
            write_result(folder, student)
    return [read_trained(folder, trainee) for trainee in job.trainees]


def span_of(trainees: Sequence[Trainee]) -> Span:
    """From the first layer in which something learns to behind the last."""
    layers = [trainee.layer for trainee in trainees]
    return Span(first=min(layers), end=max(layers) + 1)


def _errors_of(model: PreTrainedModel, job: LibraryJob, students: Sequence[Student]) -> dict[Trainee, Errors]:
    held_out = _errors_on(model, job, job.held_out, students)
    reserved = _errors_on(model, job, job.reserved, students)
    return {trainee: Errors(*errors, reserved=reserved[trainee][0]) for trainee, errors in held_out.items()}


@torch.no_grad()
def _errors_on(
    model: PreTrainedModel, job: LibraryJob, batches: Sequence[Batch], students: Sequence[Student]
) -> dict[Trainee, tuple[float, float]]:
    """The normalised errors of output and delta, of the tokens that training counts; see `train/bld.py`."""
    end = span_of([student.trainee for student in students]).end
    sums = {student.trainee: torch.zeros(3, dtype=torch.float64) for student in students}
    for given in batches:
        batch = on_device(given, model.device)
        walk = Walk(model, batch.segments_BT)
        with precision_of(job.settings, batch.ids_BT.device):
            x_BTD = walk.embed(batch.ids_BT)
            for layer in range(end):
                here = [student for student in students if student.trainee.layer == layer]
                if not here:
                    x_BTD = walk.layer(layer, x_BTD)
                    continue
                seen = look(walk, layer, x_BTD, counts_of(batch, job.settings.skip_first_tokens))
                for student in here:
                    output_BTD = run_trainee(walk, student.trainee, student.layer, seen)
                    sums[student.trainee] += _sums(output_BTD, seen)
                x_BTD = seen.y_BTD
    return {
        trainee: ((error / output).item(), (error / delta).item()) for trainee, (error, output, delta) in sums.items()
    }


def _judge(model: PreTrainedModel, job: LibraryJob, students: Sequence[Student], folder: Path) -> None:
    """Finds the errors after training; who is worse than at first, or no number, gets its first weights back.

    Reserved text says who is worse. Output and delta differ in what the same error is divided by, so whichever is
    compared says the same.
    """
    learnt = [student for student in students if student.step > 0]
    found = _errors_of(model, job, learnt) if learnt else {}
    for student in learnt:
        errors, initial = found[student.trainee], student.initial
        assert initial is not None
        if all(map(math.isfinite, errors)):
            student.trained = errors
        elif student.stopped_at is None:
            student.stopped_at = student.step
        if student.trained is None or student.trained.reserved > initial.reserved:
            student.reset(first_weights_of(model, job, student.trainee, folder))


def _sums(output_BTD: Tensor, seen: LayerBatch) -> Tensor:
    of_tokens = (squared_error(output_BTD, seen), seen.output_BT, seen.delta_BT)
    return torch.stack([(values_BT * seen.counts_BT).double().sum() for values_BT in of_tokens]).cpu()


def _open_students(model: PreTrainedModel, job: LibraryJob, trainees: Sequence[Trainee], folder: Path) -> list[Student]:
    calibrate(model, job.parent, job.init, job.training, job.trainees, folder)
    students: list[Student] = []
    for trainee in trainees:
        weights = first_weights_of(model, job, trainee, folder)
        layer = student_layer(model, job.parent, trainee, weights)
        student = Student(trainee, layer, job.settings, len(job.training))
        if state_path(folder, trainee).exists():
            student.restore(state_path(folder, trainee))
        students.append(student)
    fresh = [student for student in students if student.initial is None]
    if fresh:
        initial = _errors_of(model, job, fresh)
        for student in fresh:
            student.initial = initial[student.trainee]
    return students


def first_weights_of(model: PreTrainedModel, job: LibraryJob, trainee: Trainee, folder: Path) -> dict[str, Tensor]:
    """The weights of a trainee before training, on the job's device; `folder` has the calibration."""
    known = Known(seen=read_seen(folder, trainee.layer), init=job.init, starts=job.starts)
    return first_weights(model, job.parent, trainee, known)


def _train(
    model: PreTrainedModel,
    job: LibraryJob,
    students: Sequence[Student],
    span: Span,
    folder: Path,
    on_step: Callable[[int], None],
) -> None:
    """Feeds the parent's states to all students, from the step of the one that is least far."""
    learning = [student for student in students if student.is_learning]
    start = min((student.step for student in learning), default=len(job.training))
    if span.writes is not None:
        start = min(start, span.writes.num_steps)
    for step in range(start, len(job.training)):
        batch = on_device(job.training[step], model.device)
        walk = Walk(model, batch.segments_BT)
        x_BTD = _entering(walk, job, span, batch, step)
        for layer in range(span.first, span.end):
            if span.writes is not None and layer == span.writes_layer:
                span.writes.write(step, x_BTD)
            here = [student for student in learning if student.trainee.layer == layer and student.step == step]
            x_BTD = _teach(walk, job, here, layer, x_BTD, batch, folder)
        if span.writes is not None and span.writes_layer == span.end:
            span.writes.write(step, x_BTD)
        if (step + 1) % job.checkpoint_steps == 0:
            for student in learning:
                student.save(state_path(folder, student.trainee))
            if span.writes is not None:
                span.writes.keep(step + 1)
        learning = [student for student in learning if student.is_learning]
        on_step(step + 1)
        if not learning and span.writes is None:
            break
    if span.writes is not None:
        span.writes.keep(len(job.training))


def _entering(walk: Walk, job: LibraryJob, span: Span, batch: Batch, step: int) -> Tensor:
    """What enters the span's first layer."""
    if span.reads is not None:
        return span.reads.read(step).to(job.device)
    with torch.no_grad(), precision_of(job.settings, batch.ids_BT.device):
        x_BTD = walk.embed(batch.ids_BT)
        for layer in range(span.first):
            x_BTD = walk.layer(layer, x_BTD)
    return x_BTD


def _teach(
    walk: Walk, job: LibraryJob, students: Sequence[Student], layer: int, x_BTD: Tensor, batch: Batch, folder: Path
) -> Tensor:
    """Runs one layer of the parent, has its students take their step, and gives what leaves it."""
    with precision_of(job.settings, x_BTD.device):
        if not students:
            with torch.no_grad():
                return walk.layer(layer, x_BTD)
        seen = look(walk, layer, x_BTD, counts_of(batch, job.settings.skip_first_tokens))
    for student in students:
        if not student.learn(walk, seen):
            first = first_weights_of(walk.model, job, student.trainee, folder)
            student.go_back(state_path(folder, student.trainee), first)
            student.save(state_path(folder, student.trainee))
    return seen.y_BTD
