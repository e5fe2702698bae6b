"""Whole plans, made real in memory and measured: what they lose, what a candidate changes in them, what heals them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.library import Library
from blockwright.model.child import layer_with, part_weights
from blockwright.model.walk import Walk
from blockwright.search.metrics import Judge, TextMetrics, head_of, text_judge
from blockwright.search.scoring import replace_one
from blockwright.spec import FP32, Candidate, Model, NoOp, with_format
from blockwright.tensors import read_tensors
from blockwright.train.distill import GkdSettings, distill
from blockwright.train.realise import realise

BATCH_WINDOWS = 8
_KL = "kl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wholes:
    """What whole plans are made of and measured on."""

    model: PreTrainedModel
    """The parent."""
    library: Library
    folder: Path
    """Of the library."""
    ids_NT: Tensor
    """The windows to measure on."""

    def child(self, spec: Model) -> PreTrainedModel:
        """A plan's child; all that it has of the parent is copied.

        Args:
            spec: in any format: its weights are in fp32.
        """
        return realise(self.model, self.library, self.folder, with_format(spec, FP32))

    @torch.no_grad()
    def losses(
        self, children: Sequence[PreTrainedModel], start: int, end: int, on_child: Callable[[], None] = lambda: None
    ) -> list[list[float]]:
        """KL(parent ‖ child) in nats per token, of each child on each window from `start` to `end`."""
        found: list[list[float]] = [[] for _ in children]
        for ids_BT, judge in self._judged(start, end):
            for child, values in zip(children, found, strict=True):
                values += judge(_leaving(child, ids_BT))[_KL].tolist()
                on_child()
        return found

    @torch.no_grad()
    def changes(
        self, spec: Model, candidates: Sequence[Candidate], end: int, on_candidate: Callable[[], None] = lambda: None
    ) -> dict[Candidate, float]:
        """What each candidate changes in a plan's child: the mean KL with it in place, less the child's own.

        Args:
            spec: the child's; in any format.
            candidates: in fp32; those that the child holds are left out of the answer.
            end: windows to spend.
            on_candidate: called after each candidate on each batch.
        """
        spec = with_format(spec, FP32)
        child = self.child(spec)
        layers = self._layers(child, spec, candidates)
        sums = dict.fromkeys(layers, 0.0)
        own = 0.0
        for ids_BT, judge in self._judged(0, end):
            before: list[Tensor] = []

            def judge_of(_: object, leaving_BTD: Tensor, judge: Judge = judge, before: list[Tensor] = before) -> Judge:
                before.append(judge(leaving_BTD)[_KL])
                return judge

            for candidate, values in replace_one(child, layers, ids_BT, judge_of, on_candidate).items():
                sums[candidate] += float(values[_KL].sum())
            own += float(before[0].sum())
        return {candidate: (value - own) / end for candidate, value in sums.items()}

    def heal(self, child: PreTrainedModel, batches: Sequence[Tensor], settings: GkdSettings, state: Path) -> None:
        """Distils a child for a while, in place."""
        state.unlink(missing_ok=True)
        distill(child, self.model, batches, settings, state)
        state.unlink(missing_ok=True)

    def _judged(self, start: int, end: int) -> Iterator[tuple[Tensor, Judge]]:
        """Batches of windows with what judges a child's states against the parent's."""
        for first in range(start, end, BATCH_WINDOWS):
            ids_BT = self.ids_NT[first : min(end, first + BATCH_WINDOWS)]
            parent_BTD = _leaving(self.model, ids_BT)
            yield ids_BT, text_judge(head_of(self.model), parent_BTD, ids_BT, TextMetrics())

    def _layers(
        self, child: PreTrainedModel, spec: Model, candidates: Sequence[Candidate]
    ) -> dict[Candidate, nn.Module]:
        files: Mapping[Candidate, str] = {entry.candidate: entry.file for entry in self.library.entries}
        layers: dict[Candidate, nn.Module] = {}
        for candidate in candidates:
            if candidate.variant == getattr(spec.layers[candidate.layer], candidate.part):
                continue
            weights: dict[str, Tensor] = {}
            if candidate in files:
                weights = read_tensors(self.folder / files[candidate])
            elif not isinstance(candidate.variant, NoOp):
                weights = part_weights(self.model.model.layers[candidate.layer], candidate.part)
            layers[candidate] = layer_with(child, spec, candidate, weights)
        return layers


def in_fp32(candidate: Candidate) -> Candidate:
    """The candidate as the library has it."""
    variant = candidate.variant
    return candidate if isinstance(variant, NoOp) else replace(candidate, variant=replace(variant, weights=FP32))


def _leaving(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """The states that leave the last layer, x_BTD."""
    walk = Walk(model)
    x_BTD = walk.embed(ids_BT)
    for index in range(len(walk.layers)):
        x_BTD = walk.layer(index, x_BTD)
    return x_BTD
