"""The parent's answers, kept for a distillation: of the windows to train on, and of those to stop by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from blockwright.pipeline.console import Advance
from blockwright.pipeline.together import progress_of_first
from blockwright.train.chunked_kl import TopK
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import Sharded
from blockwright.train.teacher_cache import CacheOrder, TeacherCache, ask
from blockwright.train.windows import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersOrder:
    """What to keep, and where."""

    folder: Path
    cache: CacheOrder


class KeptAnswers:
    """All that the parent will be asked for, on disk.

    A KL by them is over k tokens and all others as one, which is at most the KL over all tokens.

    Args:
        order: what to keep, and where.
        batches: this rank's windows to train on.
        held_out: this rank's windows to stop by; their answers are kept apart, for runs that stop by none.

    Raises:
        InputError: there is no room, or the folder has the answers of another parent or to other windows.
    """

    def __init__(self, order: AnswersOrder, batches: Sequence[Batch], held_out: Sequence[Batch]) -> None:
        self._caches = [TeacherCache(order.folder, order.cache, batches)]
        if held_out:
            plain = replace(order.cache, temperature=1.0)  # what is stopped by is the KL itself, whatever is trained on
            self._caches.append(TeacherCache(order.folder / "held-out", plain, held_out))
        for cache in self._caches:
            cache.open()

    @property
    def are_full(self) -> bool:
        """Whether the parent need not be asked any more."""
        return all(cache.is_full for cache in self._caches)

    def fill(self, parent: PreTrainedModel, batch_windows: int, ranks: Ranks) -> None:
        """Asks the parent of all windows that are not kept yet; of a parent in shares all ranks ask as often."""
        for cache in self._caches:
            mine = -(-(cache.num_windows - cache.num_done) // batch_windows)
            most = ranks.most(mine)
            with progress_of_first(ranks, "ask parent", cache.num_windows) as advance:

                def fill(cache: TeacherCache = cache, again: int = most - mine, advance: Advance = advance) -> None:
                    cache.fill(parent, batch_windows, lambda done: advance(to=done))
                    for _ in range(again):  # what others still ask goes through this rank's shares
                        ask(parent, Batch(ids_BT=torch.zeros(1, 1, dtype=torch.int64).to(parent.device)), cache.order)

                Sharded(parent, None, ranks)(fill)

    def top_of(self, batch: Batch) -> TopK:
        """What the parent says of some of the windows."""
        return next(cache for cache in self._caches if cache.has(batch)).top_of(batch)
