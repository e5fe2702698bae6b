"""Costs add up with their intervals and the worst origin."""

import pytest

from blockwright.cost import Cost, Load, exact, total


def test_a_sum_adds_values_and_bounds_and_keeps_the_worst_origin() -> None:
    parts = [
        Cost(value=2.0, low=1.0, high=4.0, origin="interpolated"),
        Cost(value=3.0, low=3.0, high=3.5, origin="transferred"),
        exact(10),
    ]
    assert total(parts) == Cost(value=15.0, low=14.0, high=17.5, origin="transferred")


def test_nothing_costs_nothing() -> None:
    assert total([]) == exact(0)


@pytest.mark.parametrize(("low", "high"), [(3.0, 4.0), (0.0, 1.0), (float("nan"), 3.0)])
def test_a_value_outside_its_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low <= value <= high"):
        Cost(value=2.0, low=low, high=high, origin="measured")


def test_a_load_counts_the_tokens_of_a_finished_sequence() -> None:
    assert Load(batch=4, prompt_tokens=100, new_tokens=20).total_tokens == 120


@pytest.mark.parametrize("field", ["batch", "prompt_tokens", "new_tokens"])
def test_a_load_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Load(**({"batch": 1, "prompt_tokens": 1, "new_tokens": 1} | {field: 0}))
