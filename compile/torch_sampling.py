"""From logits to the next token, by torch on any device: the twin of `sampling`, the same tokens by the same chances.

Nothing here waits for the device or depends on what it holds, so that a CUDA graph can record it.

Shapes: B batch, V vocabulary, N tokens to write, K candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch

from blockwright.compile.sampling import Sampling


def choose_on(logits_BV: torch.Tensor, sampling: Sampling, uniform_B: torch.Tensor) -> torch.Tensor:
    """The next token of every sequence, ids_B, by `sampling.choose`'s rule.

    Args:
        logits_BV: in fp32.
        sampling: the rule.
        uniform_B: chances from 0 to 1 in fp64; not read at a temperature of 0.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    order_BK: torch.Tensor | None = None
    if sampling.top_k:
        order_BK = _ordered(logits_BV).topk(min(sampling.top_k, logits_BV.shape[1])).indices
        logits_BK = logits_BV.gather(1, order_BK)
    elif sampling.top_p < 1:
        logits_BK, order_BK = logits_BV.sort(dim=-1, descending=True, stable=True)
    else:
        logits_BK = logits_BV
    likelihoods_BK = (logits_BK.double() / sampling.temperature).softmax(dim=-1)
    upto_BK = likelihoods_BK.cumsum(dim=-1)
    total_B1, last_B = upto_BK[:, -1:], upto_BK.shape[1] - 1
    if sampling.top_p < 1:
        last_B = (upto_BK[:, :-1] < sampling.top_p).sum(dim=-1)
        total_B1 = upto_BK.gather(1, last_B[:, None])
    rank_B = (upto_BK <= uniform_B[:, None] * total_B1).sum(dim=-1)
    rank_B = torch.minimum(rank_B, last_B) if isinstance(last_B, torch.Tensor) else rank_B.clamp_max(last_B)
    return rank_B if order_BK is None else order_BK.gather(1, rank_B[:, None])[:, 0]


def _ordered(logits_BV: torch.Tensor) -> torch.Tensor:
    """Whole numbers in the logits' order, no two alike: of equal logits, which fp16 has often, the first is greater.

    On a GPU `topk` may take any of those that are alike.
    """
    bits_BV = logits_BV.contiguous().view(torch.int32)
    rank_BV = torch.where(bits_BV < 0, bits_BV ^ 0x7FFFFFFF, bits_BV).long()
    return (rank_BV << 32) - torch.arange(logits_BV.shape[1], device=logits_BV.device)


def penalised_on(logits_BV: torch.Tensor, is_seen_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The logits with those of tokens that stand in the text already made less likely, as by `sampling.penalised`."""
    penalty = sampling.repetition_penalty
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(is_seen_BV, lowered_BV, logits_BV)


class Drawer:
    """Draws tokens by one rule and remembers them, all on the device and at addresses that stay."""

    def __init__(self, rule: Sampling, most_tokens: int, like: torch.Tensor) -> None:
        """`like` is of the logits' shape, on the device; the rule's seed is not read."""
        batch, device = len(like), like.device
        self._rule = rule
        self._chances_NB = torch.zeros((most_tokens, batch), dtype=torch.float64, device=device)
        self._count_1 = torch.zeros(1, dtype=torch.int64, device=device)
        is_asked = rule.repetition_penalty != 1
        self._is_seen_BV = torch.zeros(like.shape, dtype=torch.bool, device=device) if is_asked else None
        self.ids_B = torch.zeros(batch, dtype=torch.int64, device=device)
        """What was drawn last."""

    def begin(self, prompts: Sequence[Sequence[int]], num_tokens: int, seed: int) -> None:
        """Begins with new texts, of which so many tokens will be drawn."""
        chances_NB = np.random.default_rng(seed).random((num_tokens, len(prompts)))
        self._chances_NB[:num_tokens].copy_(torch.from_numpy(chances_NB))
        self._count_1.zero_()
        if self._is_seen_BV is not None:
            is_seen_BV = torch.zeros(self._is_seen_BV.shape, dtype=torch.bool)
            for row, prompt in zip(is_seen_BV, prompts, strict=True):
                row[list(prompt)] = True
            self._is_seen_BV.copy_(is_seen_BV)

    def draw(self, logits_BV: torch.Tensor) -> None:
        """Draws the next token of every sequence into `ids_B`."""
        if self._rule.temperature == 0 and self._is_seen_BV is None:
            torch.argmax(logits_BV, dim=-1, out=self.ids_B)
            return
        uniform_B = self._chances_NB.index_select(0, self._count_1)[0]
        if self._is_seen_BV is not None:
            logits_BV = penalised_on(logits_BV, self._is_seen_BV, self._rule)
        self.ids_B.copy_(choose_on(logits_BV, self._rule, uniform_B))
        if self._is_seen_BV is not None:
            self._is_seen_BV.scatter_(1, self.ids_B[:, None], True)
        self._count_1 += 1
