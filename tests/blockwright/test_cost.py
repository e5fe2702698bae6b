"""Costs add up with their intervals and the worst origin."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.cost import MEASURED_QUANTITIES, UNIT_OF, Cost, Load, Quantity, exact, product, total
from blockwright.report.facts import QUANTITY_NAMES
from blockwright.units import format_quantity

NUMBERS = st.floats(-1e6, 1e6)


@st.composite
def costs(draw: st.DrawFn) -> tuple[Cost, float]:
    """A cost, and something it may truly be."""
    low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    return Cost(value=value, low=low, high=high, origin="measured"), draw(st.floats(low, high))


def test_every_quantity_has_a_name_and_a_unit_that_can_be_written() -> None:
    assert set(UNIT_OF) == set(QUANTITY_NAMES) == set(get_args(Quantity))
    assert set(MEASURED_QUANTITIES) < set(UNIT_OF)
    assert all(format_quantity(2.0, unit) for unit in UNIT_OF.values())


def test_a_sum_adds_values_and_bounds_and_keeps_the_worst_origin() -> None:
    parts = [
        Cost(value=2.0, low=1.0, high=4.0, origin="interpolated"),
        Cost(value=3.0, low=3.0, high=3.5, origin="transferred"),
        exact(10),
    ]
    assert total(parts) == Cost(value=15.0, low=14.0, high=17.5, origin="transferred")


def test_nothing_costs_nothing() -> None:
    assert total([]) == exact(0)


@given(costs(), costs())
def test_a_product_holds_whatever_its_factors_may_be(first: tuple[Cost, float], second: tuple[Cost, float]) -> None:
    cost, true = product(first[0], second[0]), first[1] * second[1]
    assert cost.value == first[0].value * second[0].value
    slack = 1e-9 * max(abs(cost.low), abs(cost.high))
    assert cost.low - slack <= true <= cost.high + slack


def test_a_product_multiplies_bounds_and_keeps_the_worst_origin() -> None:
    power = Cost(value=10.0, low=8.0, high=12.0, origin="modelled")
    time = Cost(value=2.0, low=1.0, high=4.0, origin="measured")
    assert product(power, time) == product(time, power) == Cost(value=20.0, low=8.0, high=48.0, origin="modelled")


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
