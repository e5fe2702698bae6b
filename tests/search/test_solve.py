"""The exact choice, against every choice there is."""

import itertools
import math
import random

import pytest

from blockwright.errors import InputError
from blockwright.search.solve import (
    Choice,
    Feasible,
    Infeasible,
    Limit,
    NothingFound,
    Optimal,
    Problem,
    is_within,
    solve,
    spent,
)
from blockwright.spec import Candidate, GatedFFN


def _choice(group: int, index: int, score: float, *costs: float) -> Choice:
    candidate = Candidate(layer=group, part="ffn", variant=GatedFFN(width=index + 1))
    return Choice(candidate=candidate, score=score, costs=costs)


def _random_problem(seed: int) -> Problem:
    generator = random.Random(seed)
    num_limits = generator.randint(0, 3)
    units = [10.0 ** generator.randint(-9, 9) for _ in range(num_limits)]
    scale = 10.0 ** generator.randint(-6, 3)
    groups = tuple(
        tuple(
            _choice(group, index, scale * generator.random(), *(unit * generator.random() for unit in units))
            for index in range(generator.randint(1, 4))
        )
        for group in range(generator.randint(1, 6))
    )
    limits = tuple(
        Limit(text=f"b{i}", fixed=0.1 * unit, limit=unit * (0.1 + generator.random() * 0.7 * len(groups)))
        for i, unit in enumerate(units)
    )
    return Problem(groups=groups, limits=limits)


def _least_score(problem: Problem) -> float | None:
    scores = [
        sum(choice.score for choice in chosen)
        for chosen in itertools.product(*problem.groups)
        if all(
            limit.fixed + sum(choice.costs[index] for choice in chosen) <= limit.limit
            for index, limit in enumerate(problem.limits)
        )
    ]
    return min(scores, default=None)


@pytest.mark.parametrize("block", range(10))
def test_the_solver_finds_what_trying_every_choice_finds(block: int) -> None:
    answers = set()
    for seed in range(15 * block, 15 * block + 15):
        problem = _random_problem(seed)
        least = _least_score(problem)
        answer = solve(problem)
        answers.add(type(answer))
        if least is None:
            assert isinstance(answer, Infeasible)
            continue
        assert isinstance(answer, Optimal)
        assert math.isclose(answer.score, least, rel_tol=1e-9)
        assert answer.bound <= answer.score
        assert math.isclose(answer.bound, answer.score, rel_tol=1e-6)
        assert len(answer.chosen) == len(problem.groups)
        assert all(choice in group for choice, group in zip(answer.chosen, problem.groups, strict=True))
        assert is_within(problem, answer.chosen)
    assert Optimal in answers


def test_both_kinds_of_answer_occur_among_the_random_problems() -> None:
    leasts = [_least_score(_random_problem(seed)) for seed in range(150)]
    assert 15 < sum(least is None for least in leasts) < 135


def test_the_least_of_each_cost_is_given_when_no_choice_fits() -> None:
    for seed in range(150):
        problem = _random_problem(seed)
        answer = solve(problem)
        if isinstance(answer, Infeasible):
            reachable = [
                min(spent(problem, chosen)[index] for chosen in itertools.product(*problem.groups))
                for index in range(len(problem.limits))
            ]
            assert answer.reachable == pytest.approx(reachable, rel=1e-12)


def test_budgets_that_clash_are_infeasible_though_each_can_be_met() -> None:
    groups = ((_choice(0, 0, 0.0, 1.0, 9.0), _choice(0, 1, 1.0, 9.0, 1.0)),)
    limits = (Limit(text="a", fixed=0.0, limit=2.0), Limit(text="b", fixed=0.0, limit=2.0))
    assert solve(Problem(groups=groups, limits=limits)) == Infeasible(reachable=(1.0, 1.0))


def test_a_hand_worked_optimum_beats_the_tempting_greedy_choice() -> None:
    # 6 of cost must go. Greedy takes the best rate first: 4 for 1, then 4 more for 4: a score of 5. Best: 6 for 3.
    groups = (
        (_choice(0, 0, 0.0, 8.0), _choice(0, 1, 1.0, 4.0)),
        (_choice(1, 0, 0.0, 8.0), _choice(1, 1, 4.0, 4.0)),
        (_choice(2, 0, 0.0, 8.0), _choice(2, 1, 3.0, 2.0)),
    )
    answer = solve(Problem(groups=groups, limits=(Limit(text="a", fixed=0.0, limit=18.0),)))
    assert isinstance(answer, Optimal)
    assert [choice.score for choice in answer.chosen] == [0.0, 0.0, 3.0]


def test_loose_budgets_leave_the_parent_as_it_is() -> None:
    groups = tuple((_choice(g, 0, 0.0, 5.0), _choice(g, 1, 0.1, 1.0)) for g in range(6))
    answer = solve(Problem(groups=groups, limits=(Limit(text="a", fixed=1.0, limit=100.0),)))
    assert isinstance(answer, Optimal)
    assert answer.chosen == tuple(group[0] for group in groups)
    assert answer.score == answer.bound == 0.0


def test_a_budget_of_what_the_parent_costs_admits_the_parent() -> None:
    generator = random.Random(0)
    for _ in range(20):
        groups = tuple(
            (_choice(g, 0, 0.0, generator.random()), _choice(g, 1, 1.0, generator.random() / 10)) for g in range(80)
        )
        backwards = sum(group[0].costs[0] for group in reversed(groups)) + 0.3
        answer = solve(Problem(groups=groups, limits=(Limit(text="a", fixed=0.3, limit=backwards),)))
        assert isinstance(answer, Optimal)
        assert answer.score == 0.0


def test_a_choice_that_is_free_fits_when_the_fixed_part_takes_the_whole_budget() -> None:
    groups = ((_choice(0, 0, 0.0, 1.0), _choice(0, 1, 2.0, 0.0)),)
    answer = solve(Problem(groups=groups, limits=(Limit(text="a", fixed=3.0, limit=3.0),)))
    assert isinstance(answer, Optimal)
    assert answer.score == 2.0


def test_the_answer_says_nothing_found_when_there_was_no_time() -> None:
    problem = _large_problem(num_layers=40, num_candidates=30)
    assert isinstance(solve(problem, time_limit_s=1e-9), NothingFound)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_scores_and_costs_that_are_no_amounts_are_refused(bad: float) -> None:
    for choice in (_choice(3, 0, bad, 1.0), _choice(3, 0, 1.0, bad)):
        with pytest.raises(InputError, match="layer 3, ffn"):
            Problem(groups=((choice,),), limits=(Limit(text="a", fixed=0.0, limit=1.0),))


def test_eighty_layers_of_twelve_candidates_are_solved() -> None:
    problem = _large_problem(num_layers=80, num_candidates=12)
    answer = solve(problem, time_limit_s=30.0)
    assert isinstance(answer, Optimal | Feasible)
    assert is_within(problem, answer.chosen)
    assert answer.score <= 1.01 * answer.bound


def _large_problem(num_layers: int, num_candidates: int) -> Problem:
    """The more a candidate saves the more it loses, in every group at another rate; two budgets of half the cost."""
    generator = random.Random(0)
    groups = []
    for group in range(2 * num_layers):
        rate = generator.random()
        shares = [1 - index / (num_candidates - 1) for index in range(num_candidates)]
        groups.append(
            tuple(
                _choice(group, i, rate * (1 - share) ** 2, share * (0.9 + 0.2 * generator.random()), share)
                for i, share in enumerate(shares)
            )
        )
    limits = (Limit(text="a", fixed=0.0, limit=1.0 * num_layers), Limit(text="b", fixed=0.0, limit=1.0 * num_layers))
    return Problem(groups=tuple(groups), limits=limits)
