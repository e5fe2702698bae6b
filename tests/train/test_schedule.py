"""The learning rate climbs, then falls along a cosine."""

import pytest

from blockwright.train.schedule import Schedule, factor_at, warm_up_then_cosine


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
def test_the_factor_climbs_to_one_and_falls_towards_the_final_one(num_steps: int) -> None:
    factors = [warm_up_then_cosine(step, num_steps) for step in range(num_steps)]
    top = factors.index(max(factors))
    assert factors[top] == 1
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0.05 <= factor <= 1 for factor in factors[top:])


def test_the_way_down_is_half_a_cosine() -> None:
    assert warm_up_then_cosine(10, 100) == pytest.approx(1)
    assert warm_up_then_cosine(100, 100) == pytest.approx(0.05)
    assert warm_up_then_cosine(55, 100) == pytest.approx((1 + 0.05) / 2)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [("linear", [0.5, 1, 1, 0.88125, 0.7625]), ("constant", [0.5, 1, 1, 1, 1]), ("cosine", [0.5, 1, 1, 0.963843])],
)
def test_values_by_hand_of_ten_steps_with_two_of_warm_up(schedule: Schedule, wanted: list[float]) -> None:
    found = [factor_at(schedule, step, 10, warm_up_share=0.2) for step in range(len(wanted))]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_without_warm_up_the_first_step_is_the_highest() -> None:
    assert factor_at("linear", 0, 10, warm_up_share=0) == 1
