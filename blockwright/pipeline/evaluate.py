"""Tasks of lm-evaluation-harness on a checkpoint, and item by item beside another one's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import blockwright
from blockwright.files import write_json
from blockwright.hw_profiles.device import installed_software
from blockwright.model.parent import load_tokenizer_of
from blockwright.pipeline.console import say
from blockwright.pipeline.harness import Key, harness_version
from blockwright.pipeline.harness_answers import Answers, answer
from blockwright.pipeline.harness_tasks import Tasks, open_tasks
from blockwright.pipeline.inputs import Checkpoint, load_checkpoint, open_checkpoint
from blockwright.pipeline.stage import check_is_no_folder, check_spares, whole
from blockwright.statistics import LEAST_VALUES, Estimate, estimate_mean
from blockwright.strict import to_data

_RESAMPLES = 1000
_RESAMPLES_OF = {"bleu": 100, "chrf": 100, "ter": 100}
"""These read all texts again for each resample (the harness's own number)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOrder:
    """What to run, and how."""

    tasks: tuple[str, ...]
    """Of the harness, or of `task_folder`, which comes first."""
    task_folder: Path | None
    limit: int | None
    """Only so many of each task's first items; None for all."""
    batch: int
    """Requests that go through the model at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One metric of one task or group of tasks; shares as the harness gives them, 0 to 1."""

    task: str
    metric: str
    filter: str
    is_higher_better: bool | None
    num_items: int
    num_shots: int
    task_version: str
    value: float | None
    """None where it is no finite number."""
    standard_error: float | None
    """None where the harness has no formula for one."""
    against_value: float | None
    against_standard_error: float | None
    difference: Estimate | None
    """The checkpoint's value less the other's, over pairs of the same items; None without another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """All results, and what they are of."""

    checkpoint: str
    checkpoint_digest: str
    against: str | None
    against_digest: str | None
    limit: int | None
    device: str
    software: dict[str, str]
    created: str
    results: tuple[Result, ...]


def evaluate(name: str, against: str | None, order: EvaluateOrder, output: Path | None) -> Evaluated:
    """Runs tasks on a parent or a child, and on another one.

    Args:
        name: the checkpoint.
        against: the one to compare with; None for none.
        order: what to run.
        output: a JSON file to write; None for none.

    Raises:
        InputError: the harness is not installed, or a checkpoint or a task cannot be used.
    """
    software = installed_software() | {"lm-eval": harness_version(), "blockwright": blockwright.__version__}
    checkpoints = [open_checkpoint(each) for each in (name, against) if each is not None]
    if output is not None:
        folders = [each.folder for each in checkpoints] + ([order.task_folder] if order.task_folder else [])
        check_is_no_folder(output)
        check_spares(output, [file for folder in folders for file in whole(folder)])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tasks = open_tasks(order.tasks, order.task_folder)
    answers = [_answers_of(each, tasks, order, device) for each in checkpoints]
    digests = [each.digest for each in checkpoints]
    evaluated = Evaluated(
        checkpoint=str(checkpoints[0].folder),
        checkpoint_digest=digests[0],
        against=None if against is None else str(checkpoints[1].folder),
        against_digest=None if against is None else digests[1],
        limit=order.limit,
        device=device,
        software=software,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        results=tuple(_result(key, tasks, answers) for key in answers[0].rows),
    )
    if output is not None:
        write_json(output, to_data(evaluated))
    return evaluated


def _answers_of(checkpoint: Checkpoint, tasks: Tasks, order: EvaluateOrder, device: str) -> Answers:
    say(f"evaluate  {checkpoint.folder}")
    tokenizer = load_tokenizer_of(checkpoint.folder, checkpoint.spec.vocab_size)
    model = load_checkpoint(checkpoint)
    nn.Module.to(model, device)  # transformers' own has a type that no checker takes
    return answer(model, tokenizer, tasks, batch=order.batch, limit=order.limit)


def _result(key: Key, tasks: Tasks, answers: Sequence[Answers]) -> Result:
    mine, theirs = answers[0], answers[1] if len(answers) > 1 else None
    value, error = mine.rows[key]
    against_value, against_error = (None, None) if theirs is None else theirs.rows[key]
    return Result(
        task=key.task,
        metric=key.metric,
        filter=key.filter,
        is_higher_better=mine.higher_is_better[key],
        num_items=mine.num_items[key.task],
        num_shots=mine.num_shots.get(key.task, 0),
        task_version=mine.versions.get(key.task, "unknown"),
        value=_finite(value),
        standard_error=_finite(error),
        against_value=_finite(against_value),
        against_standard_error=_finite(against_error),
        difference=None if theirs is None else _difference(key, tasks, mine, theirs),
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _difference(key: Key, tasks: Tasks, mine: Answers, theirs: Answers) -> Estimate | None:
    """How far two checkpoints are apart on the same items, with a bootstrap interval over items.

    A group of tasks is the mean of their means, by size or not; its items are drawn from all tasks together, each as
    heavy as it is in that mean. That adds what the tasks differ by, so the interval is rather too wide.
    """
    members, is_by_size = tasks.members(key)
    pairs = [_pairs(Key(task=name, metric=key.metric, filter=key.filter), mine, theirs) for name in members]
    pairs = [each for each in pairs if each]
    num_items = sum(map(len, pairs))
    if num_items < LEAST_VALUES:
        return None
    if (aggregation := tasks.aggregation(key)) is not None:
        return _resampled(pairs[0], aggregation, _RESAMPLES_OF.get(key.metric, _RESAMPLES))
    weights = [1.0 if is_by_size else num_items / len(pairs) / len(each) for each in pairs]
    differences = [weight * (float(a) - float(b)) for each, weight in zip(pairs, weights, strict=True) for a, b in each]
    return estimate_mean(np.array(differences)) if np.isfinite(differences).all() else None


def _pairs(key: Key, mine: Answers, theirs: Answers) -> list[tuple[Any, Any]]:
    others = theirs.items.get(key, {})
    return [(item, others[place]) for place, item in mine.items.get(key, {}).items() if place in others]


def _resampled(
    pairs: Sequence[tuple[Any, Any]], aggregation: Callable[[list[Any]], float], num_resamples: int
) -> Estimate | None:
    """The percentile bootstrap for a metric that is no mean of its items, such as a perplexity."""

    def difference(picks: np.ndarray) -> float:
        return float(aggregation([pairs[i][0] for i in picks]) - aggregation([pairs[i][1] for i in picks]))

    generator = np.random.default_rng(0)
    value = difference(np.arange(len(pairs)))
    drawn = [difference(generator.integers(0, len(pairs), len(pairs))) for _ in range(num_resamples)]
    if not np.isfinite([value, *drawn]).all():
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), num_values=len(pairs))
