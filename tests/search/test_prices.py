"""What a unit more of each limit is worth, against linear programs solved by another solver, limits moved a little."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from blockwright.search.explain import prices
from blockwright.search.problem import Choice, Limit, Problem
from blockwright.search.solve import Optimal, solve

MakeChoice = Callable[..., Choice]
Draw = Callable[..., Problem]


@pytest.fixture
def fine_problem(make_choice: MakeChoice) -> Draw:
    """Draws many layers of many sizes: two limits from above, one from below, in units far apart."""

    def draw(seed: int, num_layers: int = 30, num_choices: int = 12) -> Problem:
        generator = np.random.default_rng(seed)
        size, units = np.linspace(0, 1, num_choices), np.array([1e-4, 1e7, 1.0])
        score = generator.lognormal(0, 0.7, (num_layers, 1)) * (1 - size) ** 2
        noise = generator.lognormal(0, 0.2, (num_layers, num_choices, 3))
        cost = units * (0.1 + size[None, :, None] * noise)
        share = generator.uniform(0.35, 0.45, 3)
        room = [float(share[i] * cost[..., i].max(axis=1).sum()) for i in range(3)]
        limits = tuple(
            Limit(text=f"b{i}", fixed=0.0, limit=room[i] * (1.02 if i == 2 else 1.0), is_least=i == 2) for i in range(3)
        )
        groups = tuple(
            tuple(make_choice(g, c, float(score[g, c]), *map(float, cost[g, c])) for c in range(num_choices))
            for g in range(num_layers)
        )
        return Problem(groups=groups, limits=limits)

    return draw


def _linear(problem: Problem) -> float:
    """The least score by shares of choices."""
    choices = [(g, choice) for g, group in enumerate(problem.groups) for choice in group]
    once = np.zeros((len(problem.groups), len(choices)))
    once[[g for g, _ in choices], range(len(choices))] = 1
    sign = np.array([-1.0 if limit.is_least else 1.0 for limit in problem.limits])
    scale = np.array([abs(limit.limit) for limit in problem.limits])
    costs = np.array([choice.costs for _, choice in choices]).T * (sign / scale)[:, None]
    room = sign / scale * np.array([limit.limit - limit.fixed for limit in problem.limits])
    found: Any = linprog(
        [choice.score for _, choice in choices], A_ub=costs, b_ub=room, A_eq=once, b_eq=np.ones(len(once))
    )
    assert found.status == 0
    return float(found.fun)


def _moved(problem: Problem, index: int, share: float) -> Problem:
    """The problem with one limit looser by a share of it."""
    limit = problem.limits[index]
    looser = replace(limit, limit=limit.limit + share * abs(limit.limit) * (-1 if limit.is_least else 1))
    return replace(problem, limits=(*problem.limits[:index], looser, *problem.limits[index + 1 :]))


@pytest.mark.parametrize("seed", range(6))
def test_a_price_is_what_the_relaxation_gains_by_a_unit_more(seed: int, fine_problem: Draw) -> None:
    problem = fine_problem(seed)
    found, step = prices(problem, {}), 1e-5
    for index, limit in enumerate(problem.limits):
        worse, better = (_linear(_moved(problem, index, share)) for share in (-step, step))
        slope = (worse - better) / (2 * step * abs(limit.limit))
        assert found[index] == pytest.approx(slope, rel=1e-3, abs=1e-6 / abs(limit.limit))
        assert found[index] >= 0.0
    assert sum(price > 0 for price in found) >= 2, "hardly anything presses"


def test_a_price_says_what_a_better_budget_brings(fine_problem: Draw) -> None:
    problem = fine_problem(0, num_layers=60)
    index, step = 0, 0.01
    tight, loose = solve(problem), solve(_moved(problem, index, step))
    assert isinstance(tight, Optimal) and isinstance(loose, Optimal)
    gain = step * problem.limits[index].limit
    least, most = (gain * prices(some, {})[index] for some in (_moved(problem, index, step), problem))
    assert 0.5 * least < tight.score - loose.score < 1.5 * most


def test_what_does_not_press_has_no_price(fine_problem: Draw) -> None:
    problem = fine_problem(1)
    ends = [sum(max(c.costs[i] for c in group) for group in problem.groups) for i in range(3)]
    wide = (replace(problem.limits[0], limit=2 * ends[0]), problem.limits[1], replace(problem.limits[2], limit=1e-9))
    found = prices(replace(problem, limits=wide), {})
    assert found[0] == found[2] == 0.0 < found[1]


def test_only_the_alternative_taken_has_a_price(fine_problem: Draw) -> None:
    problem = fine_problem(2)
    limits = tuple(replace(limit, when=("batch", str(i % 2))) for i, limit in enumerate(problem.limits))
    found = prices(replace(problem, limits=limits), {"batch": "1"})
    assert found[0] == found[2] == 0.0 < found[1]


def test_without_limits_there_are_no_prices(fine_problem: Draw) -> None:
    problem = fine_problem(3)
    groups = tuple(tuple(replace(choice, costs=()) for choice in group) for group in problem.groups)
    assert prices(Problem(groups=groups, limits=()), {}) == []
