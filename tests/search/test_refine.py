"""Plans around a plan, pairs, and how far sums are from wholes."""

import itertools
import random
from collections.abc import Callable

import pytest

from blockwright.search.problem import Choice, Limit, Problem, is_within
from blockwright.search.refine import additivity, apart, around, next_plans, pairs_of, pairs_to_measure
from blockwright.search.solve import Optimal, solve
from blockwright.spec import Candidate, GatedFFN


def _problem(seed: int, make_choice: Callable[..., Choice]) -> Problem:
    generator = random.Random(seed)
    groups = tuple(
        tuple(make_choice(group, index, index * generator.random(), 3.0 - index) for index in range(3))
        for group in range(4)
    )
    return Problem(groups=groups, limits=(Limit(text="b", fixed=0.0, limit=7.0),))


@pytest.mark.parametrize("seed", range(6))
def test_the_best_change_within_a_radius_is_the_best_of_all_changes(
    seed: int, make_choice: Callable[..., Choice]
) -> None:
    problem = _problem(seed, make_choice)
    held = solve(problem)
    assert isinstance(held, Optimal)
    generator = random.Random(100 + seed)
    candidates = [choice.candidates[0] for group in problem.groups for choice in group]
    changes = {candidate: generator.uniform(-1, 1) for candidate in candidates}
    for radius in (1, 2, 4):
        answer = solve(around(problem, held.chosen, changes, radius))
        assert isinstance(answer, Optimal)
        least = 0.0
        for chosen in itertools.product(*problem.groups):
            new = [a for a, b in zip(chosen, held.chosen, strict=True) if a != b]
            if is_within(problem, chosen) and len(new) <= radius:
                least = min(least, sum(changes[choice.candidates[0]] for choice in new))
        assert answer.score == pytest.approx(least)


def test_next_plans_are_within_the_limits_each_once_and_other_than_the_plan(
    make_choice: Callable[..., Choice],
) -> None:
    problem = _problem(0, make_choice)
    held = solve(problem)
    assert isinstance(held, Optimal)
    changes = {choice.candidates[0]: -0.1 for group in problem.groups for choice in group}
    plans = next_plans(problem, held.chosen, changes, [1, 2, 4], 3, 10.0)
    assert len(plans) == len(set(plans)) >= 3
    for plan in plans:
        assert plan != held.chosen
        assert is_within(problem, plan)
        assert all(choice in group for choice, group in zip(plan, problem.groups, strict=True))


def test_blocks_are_taken_apart_into_the_groups_of_the_problem(make_choice: Callable[..., Choice]) -> None:
    problem = _problem(1, make_choice)
    plan = tuple(group[1] for group in problem.groups)
    block = Choice(candidates=tuple(c for choice in plan for c in choice.candidates), score=0.0, costs=(0.0,))
    assert apart(problem, [block]) == plan


def test_pairs_that_more_plans_hold_and_that_stand_nearer_come_first() -> None:
    a, b, c = (Candidate(layer=layer, part="ffn", variant=GatedFFN(width=8)) for layer in (0, 1, 5))
    own = Candidate(layer=2, part="ffn", variant=GatedFFN(width=64))

    def plan(*taken: Candidate) -> list[Choice]:
        return [Choice(candidates=(candidate,), score=1.0, costs=()) for candidate in taken]

    plans = [plan(a, b, own), plan(a, b, c, own)]
    assert pairs_to_measure(plans, {own}, 9) == [(a, b), (b, c), (a, c)]
    assert pairs_to_measure(plans, {own}, 1) == [(a, b)]
    [pair] = pairs_of({(a, b): 3.5}, {a: 1.0, b: 2.0})
    assert (pair.first, pair.second, pair.score) == (a, b, 0.5)


def test_additivity_is_that_of_a_line_through_sums_and_wholes() -> None:
    found = additivity([1.0, 2.0, 3.0], [2.5, 4.5, 6.5])
    assert (found.r_squared, found.slope, found.intercept) == pytest.approx((1.0, 2.0, 0.5))
    assert found.residuals == pytest.approx((1.5, 2.5, 3.5))
    assert found.mean_ratio == pytest.approx((2.5 + 2.25 + 6.5 / 3) / 3)
    noise = additivity([1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 1.0, -1.0])
    assert noise.r_squared is not None and 0 <= noise.r_squared < 0.3


def test_of_two_plans_or_equal_sums_no_line_is_drawn() -> None:
    for sums, wholes in (([1.0, 2.0], [1.0, 3.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])):
        found = additivity(sums, wholes)
        assert (found.r_squared, found.slope, found.intercept) == (None, None, None)
