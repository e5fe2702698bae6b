"""Drawing by torch against its twin of numpy, chance by chance."""

import numpy as np
import pytest
import torch

from blockwright.compile.sampling import Sampling, choose, penalised
from blockwright.compile.torch_sampling import Drawer, choose_on, penalised_on

RULES = (
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(temperature=2.0, top_k=1),
    Sampling(temperature=1.0, top_k=5),
    Sampling(temperature=1.0, top_k=500),
    Sampling(temperature=1.5, top_p=0.01),
    Sampling(temperature=1.5, top_p=0.7),
    Sampling(temperature=0.8, top_k=20, top_p=0.95),
)
BATCH, VOCAB = 40, 90


def _logits(seed: int) -> np.ndarray:
    return (4 * np.random.default_rng(seed).standard_normal((BATCH, VOCAB))).astype(np.float32)


@pytest.mark.parametrize("sampling", RULES, ids=str)
def test_the_same_chances_draw_the_same_tokens(sampling: Sampling) -> None:
    for seed in range(6):
        logits_BV = _logits(seed)
        expected = choose(logits_BV, sampling, np.random.default_rng(seed))
        chances_B = torch.from_numpy(np.random.default_rng(seed).random(BATCH))
        found = choose_on(torch.from_numpy(logits_BV), sampling, chances_B)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("sampling", RULES, ids=str)
def test_of_equal_logits_the_first_come_first(sampling: Sampling) -> None:
    """fp16 has many that are equal."""
    for seed in range(6):
        logits_BV = np.round(_logits(seed))
        expected = choose(logits_BV, sampling, np.random.default_rng(seed))
        chances_B = torch.from_numpy(np.random.default_rng(seed).random(BATCH))
        assert choose_on(torch.from_numpy(logits_BV), sampling, chances_B).tolist() == expected.tolist()


@pytest.mark.parametrize("sampling", RULES[1:], ids=str)
@pytest.mark.parametrize("chance", [0.0, 1 - 2**-53])
def test_the_ends_of_chance_draw_tokens_that_are_there(sampling: Sampling, chance: float) -> None:
    logits_BV = torch.full((1, VOCAB), -torch.inf)
    logits_BV[0, 30:33] = torch.tensor([1.0, 2.0, 1.5])
    (found,) = choose_on(logits_BV, sampling, torch.tensor([chance], dtype=torch.float64)).tolist()
    assert found in (30, 31, 32)


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.8])
def test_tokens_of_the_text_lose_the_same(penalty: float) -> None:
    logits_BV, is_seen_BV = _logits(7), np.random.default_rng(7).random((BATCH, VOCAB)) < 0.3
    sampling = Sampling(repetition_penalty=penalty)
    found = penalised_on(torch.from_numpy(logits_BV), torch.from_numpy(is_seen_BV), sampling)
    np.testing.assert_array_equal(found.numpy(), penalised(logits_BV, is_seen_BV, sampling))


def test_one_token_after_another_takes_chances_in_order_and_remembers_what_was_drawn() -> None:
    drawer = Drawer(Sampling(temperature=1.0, repetition_penalty=2.5), 9, torch.zeros(BATCH, VOCAB))
    for text_seed in (11, 12):  # the second text begins anew
        sampling = Sampling(temperature=1.0, repetition_penalty=2.5, seed=text_seed)
        prompts = [[row, row + text_seed] for row in range(BATCH)]
        drawer.begin(prompts, 5, sampling.seed)
        generator = np.random.default_rng(text_seed)
        is_seen_BV = np.zeros((BATCH, VOCAB), dtype=bool)
        is_seen_BV[np.arange(BATCH)[:, None], np.array(prompts)] = True
        for seed in range(5):
            expected = choose(penalised(_logits(seed), is_seen_BV, sampling), sampling, generator)
            is_seen_BV[np.arange(BATCH), expected] = True
            drawer.draw(torch.from_numpy(_logits(seed)))
            assert drawer.ids_B.tolist() == expected.tolist()
