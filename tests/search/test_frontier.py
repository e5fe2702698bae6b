"""The frontier, against every choice there is at every limit of its grid."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from blockwright.search.frontier import Point, dropped, frontier, undominated, with_score_limit
from blockwright.search.problem import Choice, Limit, Problem, is_within, score_of, spent

Draw = Callable[..., Problem]
EveryChoice = Callable[[Problem], list[tuple[Choice, ...]]]


def _table(problem: Problem, along: int, value: int | None, every_choice: EveryChoice) -> list[tuple[float, float]]:
    """What is limited and what is to be had, of every choice within the other limits."""
    choices = every_choice(dropped(problem, along))
    whole = {tuple(c.candidates for c in chosen): chosen for chosen in itertools.product(*problem.groups)}
    found = []
    for chosen in (whole[tuple(c.candidates for c in some)] for some in choices):
        costs = spent(problem, chosen)
        found.append((costs[along], score_of(problem, chosen) if value is None else costs[value]))
    return found


def _best_at(limit: float, table: Sequence[tuple[float, float]]) -> float:
    return min(value for cost, value in table if cost <= limit + 1e-9 * abs(limit))


def _check(problem: Problem, along: int, value: int | None, points: list[Point], table: list, num: int) -> None:
    """Every point is the best at its limit, no limit of the grid goes without, and none beats another."""
    scale = max(abs(had) for _, had in table)
    costs = [[choice.costs[along] for choice in group] for group in problem.groups]
    spread = sum(max(group) - min(group) for group in costs)
    assert -1e-9 * spread <= points[0].limit - min(table)[0] <= 1e-3 * spread, "the grid begins elsewhere"
    grid = np.linspace(points[0].limit, min(table, key=lambda pair: pair[1])[0], num)
    for point in points:
        assert np.isclose(grid, point.limit, rtol=1e-12).any()
        assert point.value == pytest.approx(_best_at(point.limit, table), rel=1e-9, abs=1e-9 * scale)
        assert point.bound == pytest.approx(point.value, rel=1e-9, abs=1e-9 * scale)
        moved = replace(problem.limits[along], limit=point.limit)
        limits = (*problem.limits[:along], moved, *problem.limits[along + 1 :])
        assert is_within(replace(problem, limits=limits), point.chosen)
        assert point.spent == pytest.approx(spent(problem, point.chosen)[along])
    for limit in grid:
        within = [point for point in points if point.spent <= limit + 1e-9 * abs(limit)]
        assert min(point.value for point in within) == pytest.approx(_best_at(limit, table), rel=1e-9, abs=1e-9 * scale)
    for first, second in itertools.pairwise(points):
        assert first.spent < second.spent and first.value > second.value and first.limit < second.limit


def _from_above(problem: Problem) -> list[int]:
    return [index for index, limit in enumerate(problem.limits) if not limit.is_least]


@pytest.mark.parametrize("block", range(4))
def test_every_point_is_the_best_at_its_limit_and_none_is_missed(
    block: int, plain_problem: Draw, block_problem: Draw, every_choice: EveryChoice
) -> None:
    """Plain problems, and such with pairs and rules on blocks; a quantity and the score, or two quantities."""
    lengths = []
    for seed in range(15 * block, 15 * block + 15):
        draw = block_problem if seed % 3 == 0 else plain_problem
        problem = draw(seed, has_decisions=False, num_limits=2 + seed % 2)
        if not (along := _from_above(problem)):
            continue
        value = None if len(along) < 2 or seed % 2 else along[1]
        points = frontier(problem, along[0], 12, value=value)
        if table := _table(problem, along[0], value, every_choice):
            _check(problem, along[0], value, points, table, 12)
        else:
            assert points == []
        lengths.append(len(points))
    assert 0 in lengths and max(lengths) > 2


@pytest.fixture
def problem(layers_problem: Draw) -> Problem:
    """Four layers within two limits from above."""
    return layers_problem(47, num_layers=4, num_limits=2, has_decisions=False)


def test_two_quantities_at_a_bounded_score(problem: Problem, every_choice: EveryChoice) -> None:
    scores = sorted(score_of(problem, chosen) for chosen in every_choice(problem))
    bounded = with_score_limit(problem, scores[len(scores) // 2])
    points = frontier(bounded, 0, 9, value=1)
    table = _table(bounded, 0, 1, every_choice)
    _check(bounded, 0, 1, points, table, 9)
    assert len(points) > 2
    assert all(score_of(problem, point.chosen) <= scores[len(scores) // 2] * (1 + 1e-9) for point in points)
    free = frontier(problem, 0, 9, value=1)
    assert min(p.spent for p in free) < min(p.spent for p in points), "the score bounds nothing"


def test_other_limits_are_kept_and_press(problem: Problem) -> None:
    free = frontier(problem, 0, 12)
    other = replace(problem.limits[1], limit=0.95 * spent(problem, free[-1].chosen)[1])
    points = frontier(replace(problem, limits=(problem.limits[0], other)), 0, 12)
    assert all(other.allows(spent(problem, point.chosen)[1]) for point in points)
    assert points[-1].value > free[-1].value, "the other limit bounds nothing"


def test_a_tolerance_is_kept_and_told(problem: Problem, every_choice: EveryChoice) -> None:
    table = _table(problem, 0, None, every_choice)
    rough = frontier(problem, 0, 12, tolerance=0.3)
    assert any(point.value - point.bound > 1e-6 for point in rough), "nothing was left open"
    for point in rough:
        best = _best_at(point.limit, table)
        assert best - 1e-12 <= point.value <= best + 0.3
        assert point.value - 0.3 - 1e-12 <= point.bound <= best + 1e-12


def test_after_every_limit_of_the_grid_it_is_told(problem: Problem) -> None:
    told: list[None] = []
    points = frontier(problem, 0, 12, on_point=lambda: told.append(None))
    assert len(told) == 12 >= len(points)
    assert len(frontier(problem, 0, 1)) == 1


def test_where_the_other_limits_allow_nothing_there_is_no_frontier(problem: Problem) -> None:
    shut = (problem.limits[0], replace(problem.limits[1], limit=-1.0))
    assert frontier(replace(problem, limits=shut), 0, 4) == []


def test_no_time_gives_no_points(problem: Problem) -> None:
    assert frontier(problem, 0, 4, time_limit_s=-1.0) == []


def test_decisions_and_limits_from_below_are_refused(problem: Problem) -> None:
    decided = (problem.limits[0], replace(problem.limits[1], when=("batch", "4")))
    least = (replace(problem.limits[0], is_least=True), problem.limits[1])
    for limits in (decided, least):
        with pytest.raises(ValueError, match="no decisions, and a limit from above"):
            frontier(replace(problem, limits=limits), 0, 4)


def test_of_points_as_good_as_each_other_one_is_kept() -> None:
    def point(spent: float, value: float) -> Point:
        return Point(limit=spent, spent=spent, value=value, bound=value, chosen=())

    kept = [point(1.0, 5.0), point(2.0, 3.0), point(4.0, 1.0)]
    beaten = [point(1.0, 6.0), point(2.0, 3.0), point(3.0, 3.0), point(5.0, 1.0), point(3.5, 4.0)]
    assert undominated([*beaten, *kept]) == kept


def test_a_limit_on_the_score_is_one_more_cost(problem: Problem) -> None:
    bounded = with_score_limit(problem, 2.5)
    assert bounded.limits[-1] == Limit(text="score <= 2.5", fixed=0.0, limit=2.5)
    chosen = tuple(group[0] for group in bounded.groups)
    assert spent(bounded, chosen)[-1] == pytest.approx(score_of(bounded, chosen))


@pytest.mark.parametrize("seed", range(40))
def test_any_two_quantities_at_a_bounded_score(seed: int, layers_problem: Draw, every_choice: EveryChoice) -> None:
    problem = layers_problem(seed, num_limits=3, has_decisions=False)
    limits = tuple(replace(limit, is_least=False, limit=2.0 * abs(limit.limit)) for limit in problem.limits)
    problem = replace(problem, limits=limits)
    scores = sorted(score_of(problem, chosen) for chosen in every_choice(problem))
    bounded = with_score_limit(problem, scores[len(scores) // 3]) if scores else problem
    for along, value in itertools.permutations(range(len(bounded.limits)), 2):
        points = frontier(bounded, along, 7, value=value)
        if table := _table(bounded, along, value, every_choice):
            _check(bounded, along, value, points, table, 7)
        else:
            assert points == []


def test_it_is_told_whether_time_ended_the_frontier(problem: Problem) -> None:
    ends: list[bool] = []
    frontier(problem, 0, 4, on_end=ends.append)
    frontier(problem, 0, 4, tolerance=0.3, on_end=ends.append)
    frontier(problem, 0, 4, time_limit_s=-1.0, on_end=ends.append)
    shut = (problem.limits[0], replace(problem.limits[1], limit=-1.0))
    frontier(replace(problem, limits=shut), 0, 4, on_end=ends.append)
    assert ends == [True, True, False, True]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_near_enough_is_proven_all_the_same_where_that_is_quick(
    seed: int, layers_problem: Draw, every_choice: EveryChoice
) -> None:
    problem = layers_problem(seed, num_layers=3, has_decisions=False, num_limits=2)
    limits = tuple(replace(limit, is_least=False, limit=1e30) for limit in problem.limits)
    problem = replace(problem, limits=limits)
    points = frontier(problem, 0, 7, value=1, near=1e30)
    _check(problem, 0, 1, points, _table(problem, 0, 1, every_choice), 7)
    assert all(point.bound == point.value for point in points)


def test_without_time_for_the_proof_what_is_near_enough_will_do(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockwright.search.frontier._PROOF_S", 0.0)
    ended: list[bool] = []
    points = frontier(problem, 0, 5, near=1e30, on_end=ended.append)
    assert points and ended == [True]
    assert any(point.bound < point.value for point in points)
