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
    """The next token of every sequence, ids_B."""
    if sampling.temperature == 0:
        return logits_BV.argmax(axis=-1)
    return np.array([_draw(logits_V, sampling, generator) for logits_V in logits_BV])


def penalised(logits_BV: np.ndarray, is_seen_BV: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The logits with those of tokens that stand in the text already made less likely."""
    penalty = np.float32(sampling.repetition_penalty)
    lowered_BV = np.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return np.where(is_seen_BV, lowered_BV, logits_BV)


def _draw(logits_V: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    order = np.argsort(-logits_V, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scaled = logits_V[order].astype(np.float64) / sampling.temperature
    likelihoods = np.exp(scaled - scaled[0])
    likelihoods /= likelihoods.sum()
    if sampling.top_p < 1:
        count = int(np.searchsorted(likelihoods.cumsum(), sampling.top_p)) + 1
        order, likelihoods = order[:count], likelihoods[:count] / likelihoods[:count].sum()
    return int(order[generator.choice(len(order), p=likelihoods)])
