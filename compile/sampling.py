"""From logits to the next token.

Shapes: B batch, V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; a temperature of 0 takes the likeliest one."""

    temperature: float = 0.0
    top_k: int = 0
    """Draw among so many likeliest tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw among the fewest tokens that together are at least this likely (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """What likely tokens lose that stand in the text already: positive logits are divided by it, negative ones
    multiplied (Keskar et al. 2019)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError("a finite temperature >= 0, top_k >= 0 and 0 < top_p <= 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError("a finite repetition penalty > 0; 1 for none")


def choose(logits_BV: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> np.ndarray:
    """The next token of every sequence, ids_B; the generator gives each one chance, unless the temperature is 0."""
    if sampling.temperature == 0:
        return logits_BV.argmax(axis=-1)
    chances_B = generator.random(len(logits_BV))
    return np.array([_drawn(logits_V, sampling, chance) for logits_V, chance in zip(logits_BV, chances_B, strict=True)])


def penalised(logits_BV: np.ndarray, is_seen_BV: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The logits with those of tokens that stand in the text already made less likely."""
    penalty = np.float32(sampling.repetition_penalty)
    lowered_BV = np.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return np.where(is_seen_BV, lowered_BV, logits_BV)


def _drawn(logits_V: np.ndarray, sampling: Sampling, chance: float) -> int:
    """The first token up to which the likelihoods, added in order, are more than a chance from 0 to 1."""
    order = _candidates(logits_V, sampling)
    scaled = (logits_V if order is None else logits_V[order]).astype(np.float64) / sampling.temperature
    likelihoods = np.exp(scaled - scaled.max())
    upto = (likelihoods / likelihoods.sum()).cumsum()
    if sampling.top_p < 1:
        upto = upto[: int(np.searchsorted(upto[:-1], sampling.top_p)) + 1]
    rank = min(int(np.searchsorted(upto, chance * upto[-1], side="right")), len(upto) - 1)
    return rank if order is None else int(order[rank])


def _candidates(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    """The likeliest tokens first, as many as may be drawn; None for all as they stand, for sorting takes long."""
    if 0 < sampling.top_k < len(logits_V):
        least = np.partition(logits_V, -sampling.top_k)[-sampling.top_k]
        above = np.flatnonzero(logits_V > least)
        best = np.concatenate([above, np.flatnonzero(logits_V == least)[: sampling.top_k - len(above)]])
        return best[np.lexsort((best, -logits_V[best]))]
    return np.argsort(-logits_V, kind="stable") if sampling.top_k or sampling.top_p < 1 else None
