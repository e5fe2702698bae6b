"""From logits to the next token."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from blockwright.compile.sampling import Sampling, choose, penalised

NUM_DRAWS = 4000


def _logits(seed: int, vocab_size: int = 12) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal(vocab_size)


def _draws(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    return choose(np.tile(logits_V, (NUM_DRAWS, 1)), sampling, np.random.default_rng(sampling.seed))


def _softmax(logits_V: np.ndarray, temperature: float) -> np.ndarray:
    exponentials = [np.exp(logit / temperature) for logit in logits_V]
    return np.array([value / sum(exponentials) for value in exponentials])


def _nucleus(likelihoods_V: np.ndarray, top_p: float) -> set[int]:
    """The likeliest tokens, added one at a time until they are likely enough together."""
    kept: set[int] = set()
    while sum(likelihoods_V[index] for index in kept) < top_p:
        rest = [index for index in range(len(likelihoods_V)) if index not in kept]
        kept.add(max(rest, key=lambda index: likelihoods_V[index]))
    return kept


def test_a_temperature_of_zero_takes_the_likeliest_of_each_sequence() -> None:
    logits_BV = np.random.default_rng(0).standard_normal((5, 12))
    assert choose(logits_BV, Sampling(), np.random.default_rng(0)).tolist() == logits_BV.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    logits_V = _logits(1)
    shares_V = np.bincount(_draws(logits_V, Sampling(temperature=temperature)), minlength=12) / NUM_DRAWS
    assert np.abs(shares_V - _softmax(logits_V, temperature)).max() < 0.04


@pytest.mark.parametrize("top_k", [1, 3, 12, 50])
def test_only_the_k_likeliest_come(top_k: int) -> None:
    logits_V = _logits(2)
    drawn = set(_draws(logits_V, Sampling(temperature=5.0, top_k=top_k)).tolist())
    assert drawn == set(sorted(range(12), key=lambda index: -logits_V[index])[:top_k])


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_only_the_fewest_tokens_that_are_likely_enough_come(top_p: float, seed: int) -> None:
    logits_V = _logits(seed)
    drawn = set(_draws(logits_V, Sampling(temperature=2.0, top_p=top_p)).tolist())
    assert drawn == _nucleus(_softmax(logits_V, 2.0), top_p)


def test_what_is_left_is_drawn_in_proportion() -> None:
    logits_V = _logits(4)
    drawn = _draws(logits_V, Sampling(temperature=1.5, top_k=4, top_p=0.8))
    likelihoods_V = _softmax(logits_V, 1.5)
    best = sorted(range(12), key=lambda index: -likelihoods_V[index])[:4]
    among_best_V = np.array([likelihoods_V[i] if i in best else 0.0 for i in range(12)])
    among_best_V /= among_best_V.sum()
    kept = _nucleus(among_best_V, 0.8)
    expected_V = np.array([among_best_V[i] if i in kept else 0.0 for i in range(12)])
    shares_V = np.bincount(drawn, minlength=12) / NUM_DRAWS
    assert np.abs(shares_V - expected_V / expected_V.sum()).max() < 0.04


def test_a_seed_gives_the_same_tokens_again() -> None:
    first, again, other = (_draws(_logits(3), Sampling(temperature=1.0, seed=seed)).tolist() for seed in (5, 5, 6))
    assert first == again != other


def test_logits_may_be_large_or_barred() -> None:
    logits_V = np.array([1e4, 1e4, -np.inf, 0.0], dtype=np.float32)
    assert set(_draws(logits_V, Sampling(temperature=1.0)).tolist()) == {0, 1}


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_tokens_seen_before_are_as_likely_as_hugging_face_makes_them(penalty: float) -> None:
    generator = np.random.default_rng(0)
    logits_BV, prompts_BT = generator.standard_normal((3, 12), dtype=np.float32), generator.integers(0, 12, (3, 5))
    is_seen_BV = np.zeros((3, 12), dtype=bool)
    np.put_along_axis(is_seen_BV, prompts_BT, True, axis=1)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.LongTensor(prompts_BT), torch.FloatTensor(logits_BV.copy())
    )
    ours = penalised(logits_BV, is_seen_BV, Sampling(repetition_penalty=penalty))
    assert np.allclose(ours, theirs.numpy(), rtol=1e-6)
    assert (penalty == 1) == np.array_equal(ours, logits_BV)


@pytest.mark.parametrize(
    "bad",
    [
        *({"temperature": value} for value in (-1.0, float("nan"), float("inf"))),
        {"top_k": -1},
        *({"repetition_penalty": value} for value in (0.0, -1.0, float("nan"), float("inf"))),
        *({"top_p": value} for value in (0.0, 1.5, float("nan"))),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="finite"):
        Sampling(**bad)
