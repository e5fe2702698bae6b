"""Stage: distil a realised child from its parent."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from blockwright.files import new_folder, read_json, write_json
from blockwright.measured import Quality
from blockwright.model.child import save_child
from blockwright.model.parent import Parent, load_tokenizer
from blockwright.pipeline.console import say
from blockwright.pipeline.distill_answers import AnswersOrder, KeptAnswers
from blockwright.pipeline.distill_models import as_checkpoint, in_precision, loaded
from blockwright.pipeline.distill_order import DistillOrder, check_order, check_pair, device_of
from blockwright.pipeline.distill_windows import judging_windows, stopping_batches
from blockwright.pipeline.inputs import (
    Checkpoint,
    Text,
    TrainingWindows,
    check_text_suits,
    checkpoint_digest,
    load_checkpoint,
    open_checkpoint,
    read_text,
    training_windows,
)
from blockwright.pipeline.stage import Stage, whole
from blockwright.pipeline.together import gathered, progress_of_first, running_together
from blockwright.strict import from_data, to_data
from blockwright.train.distill import GkdStep, best_of, distill
from blockwright.train.losses import OF_STATES
from blockwright.train.memory import Work, check_memory
from blockwright.train.objective import DTYPES
from blockwright.train.quality import compare
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import Sharded
from blockwright.train.sources import local_paths
from blockwright.train.teacher_cache import CacheOrder

HISTORY, QUALITY = "distillation.json", "quality.json"
_SEED_SHIFT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """A child on held-out text, before and after."""

    before: Quality
    after: Quality


def distill_child(
    child_folder: Path, teacher: Parent, order: DistillOrder, output: Path, ranks: Ranks | None = None
) -> Distilled | None:
    """Distils a child into a new folder, or leaves what was distilled before from the same inputs.

    Args:
        child_folder: the child.
        teacher: the parent it was made from.
        order: how.
        output: the new folder.
        ranks: who distils together, all of them calling this; None for one process.

    Returns:
        What was measured of it, on the first rank and where the order asks for it.

    Raises:
        InputError: the child is no child of ours or not of this teacher's, the order cannot be, or it takes more memory
            than there is; or there are too many ranks.
    """
    ranks = Ranks.alone() if ranks is None else ranks
    child = open_checkpoint(str(child_folder))
    check_pair(child, teacher)
    check_order(order, order.settings, len(child.spec.layers), len(teacher.spec.layers), ranks)
    text = read_text(order.text)
    stage = _stage(child, teacher, order, text, output)
    if stage.reuse(lambda: load_checkpoint(open_checkpoint(str(output)))) is not None:
        return _judged(output)
    device = device_of(order.device, ranks)
    check_memory(_work(child, teacher, order, ranks, device), device)
    with running_together(stage, ranks) as folder:
        job = _Job(
            child=child,
            teacher=teacher,
            order=order,
            text=text,
            training=_training(teacher, order, text, folder, ranks),
            inputs=stage.inputs,
            folder=folder,
            ranks=ranks,
        )
        model, history, distilled = _distill(job, device)
        if not ranks.is_first:
            return None
        _write(job, model, history, distilled, output)
    return distilled


def _stage(child: Checkpoint, teacher: Parent, order: DistillOrder, text: Text, output: Path) -> Stage:
    inputs = {
        "order": {name: value for name, value in to_data(order).items() if name != "device"},  # it goes on on any
        "child": child.digest,
        "teacher": checkpoint_digest(teacher.folder),
        "text": text.digest,
    }
    reads = (*whole(child.folder), *whole(teacher.folder), *local_paths(order.text))
    return Stage(name="distill", output=output, inputs=inputs, reads=reads)


def _work(child: Checkpoint, teacher: Parent, order: DistillOrder, ranks: Ranks, device: torch.device) -> Work:
    """What one rank will hold at once."""
    return Work(
        child=child.spec,
        parent=teacher.spec,
        settings=order.settings,
        windows=-(-order.batch_windows // ranks.world_size),
        window_tokens=order.window_tokens,
        num_ranks=ranks.world_size,
        masks_documents=order.masks_documents,
        has_answers=order.teacher_logits == "cached",
        is_judged=bool(order.judging_tokens),
        has_gpu=device.type == "cuda",
    )


def _training(teacher: Parent, order: DistillOrder, text: Text, folder: Path, ranks: Ranks) -> TrainingWindows:
    """What is trained on; says so where the text is too short for it."""
    training = training_windows(
        teacher,
        text,
        length=order.window_tokens,
        num_tokens=order.tokens,
        seed=order.seed + _SEED_SHIFT,
        folder=folder / "tokens",
        masks_documents=order.masks_documents,
    )
    if ranks.is_first and (words := training.shortage(order.tokens)) is not None:
        say(words)
    return training


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    child: Checkpoint
    teacher: Parent
    order: DistillOrder
    text: Text
    training: TrainingWindows
    inputs: dict[str, Any]
    """Of the stage."""
    folder: Path
    ranks: Ranks

    @property
    def is_judge(self) -> bool:
        """Whether the child is measured before and after; by all ranks alike, for each has shares of it only."""
        return bool(self.order.judging_tokens)

    @property
    def before_file(self) -> Path:
        """What was measured before."""
        return self.folder / "before.json"

    def compare(self, child: PreTrainedModel, parent: PreTrainedModel) -> Quality:
        """The child on held-out text, by documents that no stopping has seen."""
        windows = judging_windows(self.teacher, self.text, self.order)
        return Sharded(child, parent, self.ranks)(compare, child, parent, windows)

    def answers(self) -> AnswersOrder:
        """Which answers of the parent's are kept, and where; each rank's own."""
        folder = self.folder / "answers" if self.order.cache is None else Path(self.order.cache)
        return AnswersOrder(
            folder=folder / f"rank-{self.ranks.rank}-of-{self.ranks.world_size}",
            cache=CacheOrder(
                k=min(self.order.top_k, self.teacher.spec.vocab_size),
                temperature=self.order.temperature,
                origin={
                    "teacher": self.inputs["teacher"],
                    "text": self.training.digest,
                    "precision": self.order.precision,
                },
            ),
        )


def _distill(job: _Job, device: torch.device) -> tuple[PreTrainedModel, list[GkdStep], Distilled | None]:
    order, ranks = job.order, job.ranks
    num_steps = max(1, order.tokens // (order.batch_windows * order.window_tokens))
    batches = job.training.batches(order.batch_windows, num_steps, order.seed, ranks)
    held_out = stopping_batches(job.teacher, job.text, order, ranks)
    answers = None
    if order.teacher_logits == "cached":
        answers = KeptAnswers(job.answers(), batches, held_out)
    model = loaded(job.child, device, ranks)
    parent = _asked_first(job, model, answers)
    with progress_of_first(ranks, "distill", num_steps) as advance:

        def show(step: GkdStep) -> None:
            shown = f"loss {step.loss:.3f}" if math.isnan(step.kl) else f"KL {step.kl:.3f}"
            held_out = "" if step.held_out_kl is None else f", held out {step.held_out_kl:.3f}"
            advance(shown + held_out, to=step.step + 1)

        history = distill(
            model,
            parent,
            batches,
            order.settings,
            job.folder / "state.safetensors",
            on_step=show,
            held_out=held_out,
            top_of=None if answers is None else answers.top_of,
            ranks=ranks,
        )
    del parent  # before it is loaded again
    if best_of(history)[0] == -1 and ranks.is_first:
        say("note      no step made the child better on held-out text, so it is left as it was. Lower --learning-rate")
    if len(history) < num_steps and ranks.is_first:
        say(f"distill   stopped after {len(history)} of {num_steps} steps: the held-out KL fell no more")
    after = job.compare(model, loaded(as_checkpoint(job.teacher), device, ranks)) if job.is_judge else None
    model = gathered(model, job.child.spec, ranks)
    if after is None or not ranks.is_first:
        return model, history, None
    before = from_data(Quality, read_json(job.before_file), str(job.before_file))
    if after.kl.value > before.kl.value:
        say(
            f"note      distill made the child worse: on held-out text its KL was {before.kl.value:.3g} and is "
            f"{after.kl.value:.3g}. Lower --learning-rate"
            + ("" if order.eval_steps else ", or keep the best state of the training by --eval-every")
        )
    return model, history, Distilled(before=before, after=after)


def _asked_first(job: _Job, model: PreTrainedModel, answers: KeptAnswers | None) -> PreTrainedModel | None:
    """What training needs of the parent, after it has said all that is asked of it before."""
    order, ranks, teacher = job.order, job.ranks, as_checkpoint(job.teacher)
    needs_states = bool(order.settings.losses.among(OF_STATES))
    is_judged = not job.is_judge or bool(ranks.most(job.before_file.exists()))
    are_full = answers is not None and not ranks.most(not answers.are_full)
    if are_full and is_judged and not needs_states:
        return None
    parent = loaded(teacher, model.device, ranks)
    check_text_suits(parent, job.training.store)
    if not is_judged:
        before = job.compare(model, parent)
        if ranks.is_first:
            write_json(job.before_file, to_data(before))
    parent = in_precision(parent, teacher, model.device, ranks, DTYPES[order.precision])
    if answers is None:
        return parent
    answers.fill(parent, order.batch_windows, ranks)
    if not needs_states:
        return None
    if ranks.is_first:
        say("distill   the loss compares states too, so the parent's layers run live beside its kept answers")
    if ranks.world_size == 1:
        parent.lm_head = nn.Identity()  # nobody asks for its logits any more
    return parent


def _write(
    job: _Job, model: PreTrainedModel, history: list[GkdStep], distilled: Distilled | None, output: Path
) -> None:
    provenance = {
        "parent": str(job.teacher.folder),
        "inputs": job.inputs,
        "data": job.training.digest,
        "distilled_tokens": len(history) * job.order.batch_windows * job.order.window_tokens,
    }
    with new_folder(output) as temporary:
        save_child(model, job.child.spec, load_tokenizer(job.teacher), temporary, provenance)
        write_json(temporary / HISTORY, [asdict(step) | step.terms for step in history])
        if distilled is not None:
            write_json(temporary / QUALITY, to_data(distilled))


def _judged(output: Path) -> Distilled | None:
    path = output / QUALITY
    return from_data(Distilled, read_json(path), str(path)) if path.exists() else None
