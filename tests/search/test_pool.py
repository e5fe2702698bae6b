"""Pools of good choices that differ, against taking the best that is left of every choice there is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blockwright.search.pool import pool
from blockwright.search.problem import Choice, Problem, merged, score_of
from blockwright.search.solve import Feasible, Optimal

Draw = Callable[..., Problem]
EveryChoice = Callable[[Problem], list[tuple[Choice, ...]]]


def _num_differing(first: Sequence[Choice], second: Sequence[Choice]) -> int:
    return sum(a.candidates != b.candidates for a, b in zip(first, second, strict=True))


def _best_left(choices: list[tuple[Choice, ...]], before: Sequence[Sequence[Choice]], differ: int) -> list:
    """The choices, the best first, that differ from all before."""
    return [chosen for chosen in choices if all(_num_differing(chosen, other) >= differ for other in before)]


def _expected(problem: Problem, every_choice: EveryChoice, n: int, differ: int) -> list[tuple[Choice, ...]]:
    choices = every_choice(merged(problem))
    found: list[tuple[Choice, ...]] = []
    while len(found) < n and (choices := _best_left(choices, found[-1:], differ)):
        found.append(choices[0])
    return found


def _check(problem: Problem, expected: list[tuple[Choice, ...]], answers: list[Optimal | Feasible]) -> None:
    assert [answer.score for answer in answers] == pytest.approx([score_of(problem, chosen) for chosen in expected])
    assert [answer.chosen for answer in answers] == expected
    assert all(isinstance(answer, Optimal) and answer.bound == answer.score for answer in answers)


@pytest.mark.parametrize("block", range(4))
def test_a_pool_takes_the_best_that_is_left_again_and_again(
    block: int, layers_problem: Draw, every_choice: EveryChoice
) -> None:
    sizes = []
    for seed in range(12 * block, 12 * block + 12):
        problem, differ = layers_problem(seed), 1 + seed % 3
        if differ > len(merged(problem).groups):
            continue
        answers = pool(problem, 8, differ)
        sizes.append(len(answers))
        _check(merged(problem), _expected(problem, every_choice, 8, differ), answers)
    assert 8 in sizes and len(set(sizes)) > 2, "nothing was tried where choices run out, or where they do not"


@pytest.mark.parametrize("block", range(3))
def test_with_pairs_and_rules_too(block: int, block_problem: Draw, every_choice: EveryChoice) -> None:
    sizes = []
    for seed in range(10 * block, 10 * block + 10):
        problem, differ = block_problem(seed), 1 + seed % 2
        answers = pool(problem, 4, differ)
        sizes.append(len(answers))
        _check(problem, _expected(problem, every_choice, 4, differ), answers)
    assert 4 in sizes and len(set(sizes)) > 2


def test_a_larger_pool_differs_everywhere_it_should(layers_problem: Draw, every_choice: EveryChoice) -> None:
    problem = layers_problem(73, num_layers=4, num_limits=2)
    answers = pool(problem, 24, 2)
    assert len(answers) == 24
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores)
    for index, answer in enumerate(answers):
        assert all(len(choice.candidates) == 2 for choice in answer.chosen)
        assert all(_num_differing(answer.chosen, other.chosen) >= 2 for other in answers[:index])
    _check(merged(problem), _expected(problem, every_choice, 24, 2), answers)


def test_a_pool_is_as_large_as_there_are_choices(layers_problem: Draw, every_choice: EveryChoice) -> None:
    problem = layers_problem(3, num_layers=2)
    choices = every_choice(merged(problem))
    assert 1 < len(choices) < 100
    assert [answer.chosen for answer in pool(problem, 1000, 1)] == choices
    assert len(pool(problem, 1000, 2)) < len(choices)


def test_where_nothing_fits_the_pool_is_empty(layers_problem: Draw) -> None:
    problem = layers_problem(5, num_limits=1)
    shut = tuple(replace(limit, limit=-1.0, is_least=False) for limit in problem.limits)
    assert pool(replace(problem, limits=shut), 3, 1) == []


@pytest.mark.parametrize("differ", [0, -1, 3])
def test_plans_can_differ_in_so_many_layers_only(differ: int, layers_problem: Draw) -> None:
    with pytest.raises(ValueError, match="min_layers_differ from 1 to the 2 layers"):
        pool(layers_problem(0, num_layers=2), 2, differ)


def test_with_a_tolerance_each_is_within_it_of_the_best_that_was_left(
    layers_problem: Draw, every_choice: EveryChoice
) -> None:
    problem = layers_problem(73, num_layers=4, num_limits=2)
    answers = pool(problem, 6, 2, tolerance=0.2)
    choices, before = every_choice(merged(problem)), []
    for answer in answers:
        best = score_of(problem, _best_left(choices, before, 2)[0])
        assert best <= answer.score + 1e-12 and answer.score <= best + 0.2
        assert answer.bound <= best + 1e-12
        before.append(answer.chosen)
    assert len(answers) == 6


def test_each_is_told_when_it_is_found_and_no_time_finds_none(layers_problem: Draw) -> None:
    problem, told = layers_problem(73, num_layers=4, num_limits=2), []
    assert pool(problem, 3, 1, on_found=told.append) == told
    assert len(told) == 3
    assert pool(problem, 3, 1, time_limit_s=-1.0) == []


def test_it_is_told_whether_time_ended_the_pool(layers_problem: Draw) -> None:
    problem, ends = layers_problem(47, num_layers=4, num_limits=2, has_decisions=False), list[bool]()
    pool(problem, 12, 4, on_end=ends.append)
    pool(problem, 2, 1, tolerance=0.2, on_end=ends.append)
    pool(problem, 2, 1, time_limit_s=-1.0, on_end=ends.append)
    assert ends == [True, True, False]
    best = pool(problem, 1, 1)[0]
    unproven = Feasible(chosen=best.chosen, score=best.score, bound=best.score - 1.0, decided={})
    pool(problem, 2, 1, first=unproven, on_end=ends.append)
    pool(problem, 2, 1, first=unproven, tolerance=1.0, on_end=ends.append)
    assert ends[3:] == [False, True]
