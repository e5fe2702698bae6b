"""Bootstrap intervals say what the textbook says where the textbook applies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockwright.statistics import Estimate, estimate_mean, estimate_ratio


def test_the_interval_of_many_normal_values_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    estimate = estimate_mean(values)
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.value == pytest.approx(half_width, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half_width, rel=0.1)


def test_the_same_values_always_give_the_same_interval() -> None:
    values = np.random.default_rng(2).random(20)
    assert estimate_mean(values) == estimate_mean(values)


def test_equal_values_leave_no_doubt() -> None:
    assert estimate_mean(np.full(7, 3.0)) == Estimate(value=3.0, low=3.0, high=3.0, num_values=7)


@settings(max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_the_mean_lies_in_its_interval(values: list[float]) -> None:
    estimate = estimate_mean(np.array(values))
    assert estimate.low <= estimate.value <= estimate.high
    assert min(values) - 1e-6 <= estimate.low <= estimate.high <= max(values) + 1e-6


def test_the_ratio_of_paired_values_keeps_the_pairs() -> None:
    denominators = np.random.default_rng(3).random(30) + 0.1
    estimate = estimate_ratio(1.5 * denominators, denominators)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((1.5, 1.5, 1.5))
    shuffled = estimate_ratio(1.5 * denominators[::-1], denominators)
    assert shuffled.high - shuffled.low > 0.1


def test_values_that_belong_together_count_as_one() -> None:
    generator = np.random.default_rng(4)
    of_documents = generator.normal(0.0, 1.0, 40)
    values, documents = np.repeat(of_documents, 16), np.repeat(np.arange(40), 16)
    alone, together, once = (
        estimate_mean(values),
        estimate_mean(values, documents),
        estimate_mean(of_documents),
    )
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.05)
    assert alone.high - alone.low == pytest.approx((once.high - once.low) / 4, rel=0.1)
    assert (together.num_values, alone.num_values) == (40, 640)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(AssertionError):
        estimate_mean(np.array([1.0]))


def test_windows_of_a_single_document_stand_for_themselves() -> None:
    values = np.random.default_rng(5).random(12)
    assert estimate_mean(values, np.zeros(12)) == estimate_mean(values)
