"""Budgets as users write them."""

import pytest

from blockwright.cost import Load, exact
from blockwright.errors import InputError
from blockwright.search.budget import parse_budget

CHAT = Load(batch=1, prompt_tokens=128, new_tokens=128)
ONE = {"chat": CHAT}
TWO = {"chat": CHAT, "long-context.1": Load(batch=4, prompt_tokens=4000, new_tokens=10)}


@pytest.mark.parametrize(
    ("text", "quantity", "load", "limit"),
    [
        ("memory@chat <= 20GB", "memory", "chat", 20e9),
        ("memory@chat <= 1.5 GiB", "memory", "chat", 1.5 * 2**30),
        ("  time_per_token@chat<=80ms ", "time_per_token", "chat", 0.08),
        ("time_to_first_token@long-context.1 <= 2 s", "time_to_first_token", "long-context.1", 2.0),
        ("parameters@chat <= 3B", "parameters", "chat", 3e9),
    ],
)
def test_an_amount_with_its_unit_is_a_limit_in_the_base_unit(text: str, quantity: str, load: str, limit: float) -> None:
    budget = parse_budget(text, TWO)
    assert (budget.text, budget.quantity, budget.load, budget.share) == (text, quantity, load, None)
    assert budget.limit == pytest.approx(limit)
    assert budget.limit_for(exact(1.0)) == pytest.approx(limit)


def test_a_percentage_is_a_share_of_what_the_parent_costs() -> None:
    budget = parse_budget("time_per_token@chat <= 60%", TWO)
    assert (budget.limit, budget.share) == (None, pytest.approx(0.6))
    assert budget.limit_for(exact(0.5)) == pytest.approx(0.3)


def test_the_only_load_need_not_be_named() -> None:
    assert parse_budget("memory <= 20GB", ONE).load == "chat"


@pytest.mark.parametrize(
    ("text", "loads", "complaint"),
    [
        ("", ONE, "quantity"),
        ("memory", ONE, "quantity"),
        ("memory < 20GB", ONE, "quantity"),
        ("memory >= 20GB", ONE, "quantity"),
        ("memory@ <= 20GB", ONE, "quantity"),
        ("memory <= ", ONE, "unit"),
        ("tokens <= 20GB", ONE, "one of time_per_token"),
        ("Memory <= 20GB", ONE, "one of time_per_token"),
        ("memory <= 20GB", TWO, "no load"),
        ("memory@batch <= 20GB", TWO, "'batch'"),
        ("memory@chat <= 20", ONE, "unit"),
        ("memory@chat <= 20ms", ONE, "unit"),
        ("time_per_token@chat <= 20GB", ONE, "unit"),
        ("time_per_token@chat <= fast", ONE, "unit"),
        ("time_per_token@chat <= -3ms", ONE, "unit"),
        ("parameters <= 7", ONE, "unit"),
    ],
)
def test_what_is_no_budget_is_refused_with_what_is_wrong(text: str, loads: dict[str, Load], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_budget(text, loads)
