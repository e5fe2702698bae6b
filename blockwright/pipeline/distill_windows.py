"""The held-out windows of a distillation: those to stop by, and those to judge by, of other documents."""

import torch

from blockwright.errors import InputError
from blockwright.model.parent import Parent
from blockwright.pipeline.distill_order import DistillOrder
from blockwright.pipeline.inputs import Text, windows_to_judge_by
from blockwright.statistics import LEAST_VALUES
from blockwright.train.ranks import Ranks
from blockwright.train.windows import Batch, Windows

_STOP_SEED_SHIFT, _JUDGE_SEED_SHIFT = 3, 4
_STOP_TOKENS = 8192
"""Held-out tokens that decide when to stop."""


def judging_windows(teacher: Parent, text: Text, order: DistillOrder) -> Windows:
    """Windows of held-out documents that no stopping has seen.

    Raises:
        InputError: there is too little text.
    """
    documents = text.held_out[1::2] if order.eval_steps else text.held_out
    return windows_to_judge_by(
        teacher,
        documents,
        length=order.window_tokens,
        num_tokens=order.judging_tokens,
        seed=order.seed + _JUDGE_SEED_SHIFT,
    )


def stopping_batches(teacher: Parent, text: Text, order: DistillOrder, ranks: Ranks) -> list[Batch]:
    """A rank's share of the windows to stop by, which are the same for any number of ranks; none if none are asked for.

    Raises:
        InputError: there is too little text, or there are fewer windows than ranks.
    """
    if not order.eval_steps:
        return []
    windows = windows_to_judge_by(
        teacher,
        text.held_out[::2],
        length=order.window_tokens,
        num_tokens=max(_STOP_TOKENS, LEAST_VALUES * order.window_tokens),
        seed=order.seed + _STOP_SEED_SHIFT,
    )
    if windows.num_windows < ranks.world_size:
        raise InputError(
            "--eval-every",
            got=f"{windows.num_windows} held-out windows to stop by, for {ranks.world_size} ranks",
            expected="at least one window for each rank",
            remedy="Take fewer ranks, give more text or a shorter window (--window), or leave --eval-every out.",
        )
    rows = ranks.shard(torch.arange(windows.num_windows))
    found = [windows.read(some) for some in rows.split(order.batch_windows)]
    return found if order.masks_documents else [Batch(ids_BT=batch.ids_BT) for batch in found]
