"""Decisions, against trying every way to take them, and the clock."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blockwright.search.problem import Choice, Limit, Problem, is_within
from blockwright.search.relaxation import relax
from blockwright.search.solve import Feasible, Infeasible, NothingFound, Optimal, solve

MakeChoice = Callable[..., Choice]
Draw = Callable[..., Problem]
LeastScore = Callable[[Problem], float]


@pytest.fixture
def decided_problem(make_choice: MakeChoice) -> Draw:
    """Draws decisions with four alternatives each, which bound a cost of their own more or less."""

    def draw(seed: int, num_decisions: int = 3) -> Problem:
        generator = np.random.default_rng(seed)
        groups = tuple(
            tuple(make_choice(g, c, *generator.random(4 * num_decisions + 1).tolist()) for c in range(3))
            for g in range(4)
        )
        limits = tuple(
            Limit(text=f"{d}{a}", fixed=0.0, limit=float(generator.uniform(0.6, 2.4)), when=(f"d{d}", f"a{a}"))
            for d in range(num_decisions)
            for a in range(4)
        )
        return Problem(groups=groups, limits=limits)

    return draw


@pytest.mark.parametrize("seed", range(20))
def test_many_ways_to_decide_lose_nothing(seed: int, decided_problem: Draw, least_score: LeastScore) -> None:
    problem = decided_problem(seed)
    answer, least = solve(problem), least_score(problem)
    if math.isinf(least):
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Optimal)
    assert math.isclose(answer.score, least, rel_tol=1e-9) and answer.bound == answer.score
    assert is_within(problem, answer.chosen, answer.decided) and set(answer.decided) == set(problem.decisions)


@pytest.fixture
def num_relaxed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts relaxations, each of which moves the clock by a second; nothing else does."""
    count = 0

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return relax(*args)

    monkeypatch.setattr("blockwright.search.decisions.relax", counted)
    monkeypatch.setattr("time.monotonic", lambda: float(count))
    return lambda: count


def test_of_many_ways_to_decide_few_are_looked_at(decided_problem: Draw, num_relaxed: Callable[[], int]) -> None:
    problem = decided_problem(1, num_decisions=5)
    answer = solve(problem, time_limit_s=1e9)
    assert isinstance(answer, Optimal)
    assert num_relaxed() < 4**5 / 4


@pytest.mark.parametrize("time_limit_s", [0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 1e9])
def test_time_ends_between_ways_to_decide_with_a_bound_that_holds(
    time_limit_s: float, decided_problem: Draw, num_relaxed: Callable[[], int], least_score: LeastScore
) -> None:
    for seed in range(8):
        problem, before = decided_problem(seed), num_relaxed()
        answer = solve(problem, time_limit_s=time_limit_s)
        assert num_relaxed() - before <= time_limit_s + 1
        if isinstance(answer, Infeasible):
            assert math.isinf(least_score(problem))
        elif not isinstance(answer, NothingFound):
            least = least_score(problem)
            assert answer.bound - 1e-9 <= least <= answer.score + 1e-9
        assert time_limit_s < 1e9 or not isinstance(answer, Feasible | NothingFound)
