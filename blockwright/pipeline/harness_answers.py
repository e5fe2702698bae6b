"""What lm-evaluation-harness makes of a model that is in memory."""

import contextlib
import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.pipeline.harness import SEED, Key, log_passed_on, part
from blockwright.pipeline.harness_tasks import Tasks, check_fits

_RESAMPLES = 1000
"""For standard errors of what is no mean; each means going through all items in Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the harness made of a model."""

    rows: dict[Key, tuple[float, float | None]]
    """Values with their standard errors, None where the harness has no formula for one."""
    items: dict[Key, dict[int, Any]]
    """What each item came to, by its place in the task; tasks only, no groups."""
    num_items: dict[str, int]
    num_shots: dict[str, int]
    versions: dict[str, str]
    higher_is_better: dict[Key, bool | None]


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tasks: Tasks, *, batch: int, limit: int | None
) -> Answers:
    """Runs tasks on a model, the same items in the same way each time.

    Args:
        model: a parent or a child.
        tokenizer: its own; gets the padding and end tokens that the harness asks for.
        tasks: what to run.
        batch: requests that go through the model at once.
        limit: only so many of each task's first items; None for all.

    Raises:
        InputError: the tokenizer has no token to begin with, or a task asks for more text than the model can hold.
    """
    longest = model.config.max_position_embeddings
    for name, task in tasks.loaded["tasks"].items():
        check_fits(name, task, longest)
        task.set_fewshot_seed(seed=SEED)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    wrapped = _wrap(model, tokenizer, batch, longest)
    with log_passed_on(), contextlib.redirect_stdout(sys.stderr):
        found = part("lm_eval.evaluator").evaluate(
            wrapped, tasks.loaded, limit=limit, bootstrap_iters=_RESAMPLES, log_samples=True
        )
    return _answers_of(found)


def _wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: int, longest: int) -> Any:
    end = tokenizer.eos_token or tokenizer.bos_token
    if end is None:
        raise InputError(
            "tokenizer",
            got="neither a bos nor an eos token",
            expected="one of them: tasks without a prompt begin with it",
            remedy="Name one in tokenizer_config.json.",
        )
    tokenizer.eos_token = end
    tokenizer.pad_token = tokenizer.pad_token or end  # the harness would add one that the embedding does not have
    with log_passed_on(is_heard=False):  # it warns that the model is in memory already
        return part("lm_eval.models.huggingface").HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, max_length=longest
        )


def _answers_of(found: Any) -> Answers:
    rows: dict[Key, tuple[float, float | None]] = {}
    items: dict[Key, dict[int, Any]] = {}
    for task, results in found["results"].items():
        for name, value in results.items():
            metric, comma, kept = name.rpartition(",")
            if comma and not metric.endswith("_stderr"):
                error = results.get(f"{metric}_stderr,{kept}")
                rows[Key(task=task, metric=metric, filter=kept)] = (value, error if error != "N/A" else None)
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                items.setdefault(Key(task=task, metric=metric, filter=sample["filter"]), {})[sample["doc_id"]] = sample[
                    metric
                ]
    return Answers(
        rows=rows,
        items=items,
        num_items={task: results.get("sample_len", 0) for task, results in found["results"].items()},
        num_shots={task: shots or 0 for task, shots in found["n-shot"].items()},
        versions={task: str(number) for task, number in found["versions"].items()},
        higher_is_better={key: found["higher_is_better"].get(key.task, {}).get(key.metric) for key in rows},
    )
