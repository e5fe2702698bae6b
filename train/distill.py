"""Global knowledge distillation: the whole child learns from the whole parent (Puzzle, section 4.3 and appendix F.3).

What is minimised is in `losses.py`. A step reads one batch, in parts where memory is short; its loss is the mean over
the valid tokens of all parts and ranks, so that neither changes it. Child and parent stay in evaluation mode: nothing
is random, and a training that was killed goes on as if it had not been, to the bit on a CPU.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.train.losses import KL_AND_COSINE, Losses, kl_and_cosine
from blockwright.train.objective import (
    Objective,
    Precision,
    TopOf,
    counts_of,
    objective_loss,
    parts_of,
)
from blockwright.train.optimizers import OptimizerName, make_optimizers
from blockwright.train.ranks import Ranks
from blockwright.train.schedule import WARM_UP_SHARE, Schedule, factor_at
from blockwright.train.sharded import Sharded, clip, local
from blockwright.train.state import load_state, load_weights, save_state, save_weights
from blockwright.train.windows import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class GkdSettings:
    """How the child is distilled."""

    learning_rate: float
    checkpoint_steps: int
    """A kill loses at most so many steps."""
    losses: Losses = KL_AND_COSINE
    layer_map: tuple[int, ...] | None = None
    parts: int = 1
    """In how many parts a rank works through its windows of a batch: more take less memory."""
    recomputes_activations: bool = False
    precision: Precision = "fp32"
    optimizer: OptimizerName = "adamw"
    schedule: Schedule = "cosine"
    warm_up_share: float = WARM_UP_SHARE
    most_gradient_norm: float = 1.0
    """Gradients are scaled down to it."""
    eval_steps: int = 0
    """Held-out KL is measured before the first and after every so many steps, and the best child is what remains, be it
    the one of before; 0 for never."""
    patience: int = 0
    """Stops when so many measurements in turn were no better; 0 for never."""

    @property
    def objective(self) -> Objective:
        """What one step minimises."""
        return Objective(
            losses=self.losses,
            layer_map=self.layer_map,
            recomputes_activations=self.recomputes_activations,
            precision=self.precision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GkdStep:
    """What one step saw."""

    step: int
    loss: float
    terms: dict[str, float]
    """The value of each term of the loss, without its weight."""
    gradient_norm: float
    """Before clipping."""
    held_out_kl: float | None = None
    """After the step, where it was measured; where the parent's next tokens are looked up, over its k likeliest and all
    others as one, which is at most the KL over all."""
    initial_held_out_kl: float | None = None
    """Before the first step; of that step alone."""

    @property
    def kl(self) -> float:
        """KL(parent ‖ child) of the step's batch; not a number where the loss has no such term."""
        return self.terms.get("kl", math.nan)

    @property
    def cosine(self) -> float:
        """As `kl`, of the states."""
        return self.terms.get("cosine", math.nan)


def distill(
    child: PreTrainedModel,
    parent: PreTrainedModel | None,
    batches: Sequence[Batch | Tensor],
    settings: GkdSettings,
    checkpoint: Path,
    on_step: Callable[[GkdStep], None] = lambda step: None,
    *,
    held_out: Iterable[Batch | Tensor] = (),
    top_of: TopOf | None = None,
    ranks: Ranks | None = None,
) -> list[GkdStep]:
    """Trains the child in place, from its last checkpoint where there is one.

    Args:
        child: the child; all its weights are trained.
        parent: the parent, frozen, on the child's device; None where the loss needs nothing of it but what `top_of`
            looks up. Its head may be missing where `top_of` is given.
        batches: this rank's windows, one batch per step; the same ones after a kill.
        settings: how to train.
        checkpoint: a file (safetensors) to keep the state of training in; the best child stands beside it. Removed by
            the caller when done with them.
        on_step: called after each step.
        held_out: this rank's windows to measure on, where the settings ask for it; at least one batch.
        top_of: looks up the parent's likeliest tokens, of held-out windows too; None where the parent says them live.
        ranks: who trains together; None for one process.

    Returns:
        All steps, those before a kill included.

    Raises:
        InputError: the loss is no number any more.
    """
    if parent is not None:
        parent.requires_grad_(False).eval()
    child.requires_grad_(True).eval()
    ranks = Ranks.alone() if ranks is None else ranks
    learner = _Learner(child, parent, settings, ranks, top_of)
    history = learner.restore(checkpoint)
    held_out = list(held_out)
    initial_kl = None
    if settings.eval_steps and not history:
        initial_kl = learner.judge(held_out, checkpoint, -1, len(batches), math.inf)
    while len(history) < len(batches) and not _has_stalled(history, settings.patience):
        step = len(history)
        try:
            seen = learner.step(batches[step], step, len(batches))
        except _NoNumber as error:
            learner.keep_good(checkpoint, history)
            raise _refusal(error, checkpoint, step, len(batches)) from None
        seen = replace(seen, initial_held_out_kl=None if history else initial_kl)
        is_last = step + 1 == len(batches)
        if settings.eval_steps and ((step + 1) % settings.eval_steps == 0 or is_last):
            _, least = best_of([*history, seen])
            seen = replace(seen, held_out_kl=learner.judge(held_out, checkpoint, step, len(batches), least))
        history.append(seen)
        on_step(seen)
        if (step + 1) % settings.checkpoint_steps == 0 and not is_last:
            learner.save(checkpoint, history)
    best, _ = best_of(history)
    if best is not None:
        ranks.sum(torch.zeros((), device=child.device))  # the file may be another rank's, still being written
        load_weights(_best_file(checkpoint, best), child)
    return history


def best_of(history: Sequence[GkdStep]) -> tuple[int | None, float]:
    """The step after which the held-out KL was least, and that KL: -1 for before the first one, None and infinity where
    it was not measured."""
    measured = [(seen.held_out_kl, seen.step) for seen in history if seen.held_out_kl is not None]
    measured += [(seen.initial_held_out_kl, -1) for seen in history if seen.initial_held_out_kl is not None]
    kl, step = min(measured, default=(math.inf, None))
    return step, kl


class _NoNumber(Exception):
    """A loss or gradient that is none."""


class _Learner:
    """A child with its optimisers: makes steps, keeps and restores what they depend on."""

    def __init__(
        self,
        child: PreTrainedModel,
        parent: PreTrainedModel | None,
        settings: GkdSettings,
        ranks: Ranks,
        top_of: TopOf | None,
    ) -> None:
        self.child, self.parent, self.settings, self.ranks, self.top_of = child, parent, settings, ranks, top_of
        self.models = Sharded(child, parent, ranks)
        self.optimizers = make_optimizers(settings.optimizer, child, settings.learning_rate)

    def step(self, batch: Batch | Tensor, step: int, num_steps: int) -> GkdStep:
        """One step on a batch; raises `_NoNumber`, with all weights as they were, where its loss is none."""
        settings = self.settings
        batch = self._here(batch)
        counts = self._counts(batch)
        values = torch.zeros(len(settings.losses.weights), device=self.child.device)
        for part in parts_of(batch, settings.parts):
            loss, found = self._loss(settings.objective, part, counts)
            loss.backward()
            values += found
        terms = dict(zip(settings.losses.names, self.ranks.sum(values).tolist(), strict=True))
        total = sum(weight * terms[name] for name, weight in settings.losses.weights)
        norm = float(clip(list(self.child.parameters()), settings.most_gradient_norm))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise _NoNumber(f"a loss of {total} with a gradient of norm {norm}")
        rate = settings.learning_rate * factor_at(settings.schedule, step, num_steps, settings.warm_up_share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        return GkdStep(step=step, loss=total, terms=terms, gradient_norm=norm)

    @torch.no_grad()
    def held_out_kl(self, batches: Sequence[Batch | Tensor]) -> float:
        """Mean KL(parent ‖ child) over tokens of all ranks.

        Ranks may have different numbers of batches, but must gather weights as often: who has done its own does its
        first again, for nothing.
        """
        objective = Objective(losses=kl_and_cosine(0), precision=self.settings.precision)
        total = torch.zeros(2, device=self.child.device)
        for index in range(self.ranks.most(len(batches))):
            batch = self._here(batches[index if index < len(batches) else 0])
            count = counts_of(batch)[0]
            kl, _ = self._loss(objective, batch, (int(count), 1))
            total += torch.stack([kl * count, count]) * (index < len(batches))
        kl, count = self.ranks.sum(total).tolist()
        return kl / count

    def judge(self, batches: Sequence[Batch | Tensor], path: Path, step: int, num_batches: int, least: float) -> float:
        """The held-out KL after a step; keeps the child where it is less than the least so far."""
        kl = self.held_out_kl(batches)
        if not math.isfinite(kl):
            raise _refusal(f"a held-out KL of {kl}", path, step, num_batches)
        if kl < least:
            save_weights(_best_file(path, step), self.child, self.ranks)
        return kl

    def save(self, path: Path, history: Sequence[GkdStep]) -> None:
        """Keeps the state after these steps, and of the best children only the one that it refers to."""
        save_state(path, self.child, self.optimizers, [asdict(seen) for seen in history], self.ranks)
        if self.ranks.is_first:
            best, _ = best_of(history)
            for file in path.parent.glob(_best_file(path, "*").name):
                if best is None or file != _best_file(path, best):
                    file.unlink()

    def restore(self, path: Path) -> list[GkdStep]:
        """The steps of the state that was kept, if any, which the child then has made."""
        if not path.exists():
            return []
        return [GkdStep(**seen) for seen in load_state(path, self.child, self.optimizers)]

    def keep_good(self, path: Path, history: Sequence[GkdStep]) -> None:
        """Keeps the state after these steps, unless a weight is no number; a step that failed has left none behind."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        shares = [local(parameter.detach()) for parameter in self.child.parameters()]
        num_bad = torch.stack([(~share.isfinite()).any() for share in shares]).sum()
        if history and not self.ranks.sum(num_bad):
            self.save(path, history)

    def _loss(self, objective: Objective, batch: Batch, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        top = None if self.top_of is None else self.top_of(batch)
        return self.models(objective_loss, self.child, self.parent, objective, batch, counts, top)

    def _counts(self, batch: Batch) -> tuple[int, int]:
        num_tokens, num_labels = self.ranks.sum(counts_of(batch)).tolist()
        return num_tokens, num_labels

    def _here(self, batch: Batch | Tensor) -> Batch:
        batch = Batch(ids_BT=batch) if isinstance(batch, Tensor) else batch
        segments, device = batch.segments_BT, self.child.device
        return Batch(ids_BT=batch.ids_BT.to(device), segments_BT=None if segments is None else segments.to(device))


def _refusal(what: object, path: Path, step: int, num_batches: int) -> InputError:
    """What to tell of a batch after which nothing is a number any more."""
    kept = f"the last good state is kept in {path}" if path.exists() else "nothing was lost: no state was kept yet"
    return InputError(
        "distillation loss",
        got=f"{what} at batch {step + 1} of {num_batches}",
        expected="a number",
        remedy=f"Lower the learning rate, or mend that batch's text, and begin anew; {kept} until another run into the "
        "same folder ends well.",
    )


def _has_stalled(history: Sequence[GkdStep], patience: int) -> bool:
    best, _ = best_of(history)
    if not patience or best is None:
        return False
    return sum(seen.held_out_kl is not None for seen in history[best + 1 :]) >= patience


def _best_file(checkpoint: Path, step: int | str) -> Path:
    made = step if isinstance(step, str) else step + 1
    return checkpoint.with_name(f"{checkpoint.stem}-best-{made}{checkpoint.suffix}")
