"""Losses are read by name, and layers of a child that has fewer are mapped to the parent's."""

import pytest
import torch

from blockwright.errors import InputError
from blockwright.train.losses import (
    check_layer_map,
    even_layer_map,
    kl_and_cosine,
    parse_losses,
    state_losses,
)


def test_a_sum_of_losses_is_read_with_its_weights_in_one_order() -> None:
    assert parse_losses("0.5*cosine + kl").weights == (("kl", 1.0), ("cosine", 0.5))
    assert parse_losses("kl+cosine") == kl_and_cosine()
    assert parse_losses("kl+0*cosine") == kl_and_cosine(0)
    every = "kl+reverse-kl+js+lm+cosine+mse"
    assert "+".join(parse_losses(every).names) == every


@pytest.mark.parametrize("text", ["", "kl+", "kl+kl", "kld", "x*kl", "-1*kl", "nan*kl", "inf*kl", "0*kl", "kl*2"])
def test_a_sum_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--loss.*0\.5\*cosine"):
        parse_losses(text)


@pytest.mark.parametrize(("temperature", "js_beta"), [(0, 0.5), (-1, 0.5), (float("nan"), 0.5), (1, 0), (1, 1)])
def test_a_temperature_or_mixture_that_cannot_be_is_refused(temperature: float, js_beta: float) -> None:
    with pytest.raises(InputError, match="a number above 0"):
        parse_losses("kl", temperature=temperature, js_beta=js_beta)


def test_layers_are_spread_evenly_and_the_last_is_held_against_the_last() -> None:
    assert even_layer_map(4, 4) == (0, 1, 2, 3)
    assert even_layer_map(2, 4) == (1, 3)
    assert even_layer_map(3, 8) == (1, 4, 7)
    for num_child in range(1, 9):
        check_layer_map(even_layer_map(num_child, 8), num_child, 8)


@pytest.mark.parametrize("layer_map", [(0, 1), (0, 1, 1), (2, 1, 3), (0, 1, 4), (-1, 0, 1)])
def test_a_map_that_cannot_be_is_refused(layer_map: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="3 rising layers of the parent, from 0 to 3"):
        check_layer_map(layer_map, 3, 4)


def test_losses_of_states_are_sums_over_the_valid_tokens() -> None:
    x_BTD, y_BTD = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    valid_BT = torch.tensor([[True, False, True, True, False], [False] * 5])
    cosine, mse = state_losses(["cosine", "mse"], x_BTD, y_BTD, valid_BT)
    pairs = [(x_BTD[0, t].double(), y_BTD[0, t].double()) for t in (0, 2, 3)]
    assert cosine.item() == pytest.approx(sum(1 - (x @ y / x.norm() / y.norm()).item() for x, y in pairs), rel=1e-5)
    assert mse.item() == pytest.approx(sum((x - y).square().mean().item() for x, y in pairs), rel=1e-5)
    assert state_losses(["mse"], x_BTD, y_BTD, None)[0].item() == pytest.approx(
        (x_BTD - y_BTD).square().mean(-1).sum().item(), rel=1e-5
    )
