"""Scores by workers: for each batch, tasks of some layers' candidates each.

Every task runs the parent on the batch for itself and then its own candidates, those of whole layers, so that
candidates go side by side as they do in one process: the values are the same to the last bit. Tasks are cut to be of
one size: a candidate costs the layers after its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from blockwright.library import read_library
from blockwright.model.parent import load_model, open_parent
from blockwright.pipeline.candidates import candidate_layers, candidates_in, key_of
from blockwright.pipeline.rounds import ScoreBatch, Yardsticks, run_batch
from blockwright.pipeline.score import ScoreOrder, read_yardsticks
from blockwright.pipeline.workers import Workers
from blockwright.spec import Candidate, parse_format

_TASKS_PER_WORKER = 2
"""So that who is done early finds something to do; more would only run the parent more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTasks:
    """Runs candidates by workers; call it as `rounds.Run`."""

    pool: Workers
    parent: str
    """The parent's folder; workers see it, the library and what the order names under the same paths."""
    library: str
    order: ScoreOrder

    def __call__(
        self, candidates: Sequence[Candidate], batch: ScoreBatch, on_candidate: Callable[[], None]
    ) -> dict[str, Any]:
        """What `run_batch` finds."""
        shares = shares_of(candidates, _TASKS_PER_WORKER * self.pool.num_workers)
        given = (self.parent, self.library, replace(self.order, race=None), self.pool.share(batch))
        tasks = [
            (index, self.pool.start(f"{batch.name}, share {index}", _score, *given, tuple(map(key_of, share))))
            for index, share in enumerate(shares)
        ]
        values: dict[str, Any] = {}
        influence: list[float] = []
        for index, found in self.pool.as_done(tasks):
            values |= found["values"]
            influence = found["influence"]
            for _ in shares[index]:
                on_candidate()
        return {"values": {key_of(c): values[key_of(c)] for c in candidates}, "influence": influence}


def shares_of(candidates: Sequence[Candidate], num_shares: int) -> list[list[Candidate]]:
    """At most so many shares of about equal work, each of whole layers."""
    by_layer: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_layer.setdefault(candidate.layer, []).append(candidate)
    num_layers = 1 + max(by_layer, default=0)
    shares: list[list[Candidate]] = [[] for _ in range(min(num_shares, len(by_layer)))]
    work = [0] * len(shares)
    for layer in sorted(by_layer):  # the most work first, each to who has least
        least = work.index(min(work))
        shares[least] += by_layer[layer]
        work[least] += (num_layers - layer) * len(by_layer[layer])
    return shares


def _score(parent: str, library: str, order: ScoreOrder, batch: ScoreBatch, keys: tuple[str, ...]) -> dict[str, Any]:
    model, layers, yardsticks = _loaded(parent, library, order)
    return run_batch(
        model, {candidate: layers[candidate] for candidate in layers if key_of(candidate) in keys}, batch, yardsticks
    )


@lru_cache(maxsize=1)
def _loaded(
    parent_folder: str, library_folder: str, order: ScoreOrder
) -> tuple[PreTrainedModel, dict[Candidate, nn.Module], Yardsticks]:
    """What a worker needs for all its tasks."""
    parent, library = open_parent(parent_folder), read_library(Path(library_folder))
    model = load_model(parent)
    candidates = candidates_in(library, [parse_format(weights) for weights in order.formats])
    return model, candidate_layers(model, library, Path(library_folder), candidates), read_yardsticks(order, parent)
