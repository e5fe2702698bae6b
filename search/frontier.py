"""The Pareto frontier: the best that can be had of one quantity at each limit of another.

On a grid of limits from the least that can be reached, the other limits kept, to what the best choice takes without
this one. The quantity to be had is the sum of scores, or what another limit is about; then the score may be bounded.
The grid is gone through from the tightest limit on: what is within one is within the next, so each point starts from
the one before, and from its prices.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.search.core import Found
from blockwright.search.problem import Choice, Limit, Problem
from blockwright.search.solve import Feasible, Memory, Optimal, Prepared, columns_of, prepare, solve, solve_prepared

_END_TOLERANCE = 1e-3
"""Of what choices can change of the cost: where the grid begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The best choice at one limit."""

    limit: float
    spent: float
    """What the choice takes of what is limited."""
    value: float
    """Of the quantity to be had: the sum of scores, or a cost."""
    bound: float
    """No choice at this limit has a lower value."""
    chosen: tuple[Choice, ...]


def frontier(
    problem: Problem,
    along: int,
    points: int,
    *,
    value: int | None = None,
    tolerance: float = 0.0,
    time_limit_s: float = 60.0,
    on_point: Callable[[], None] = lambda: None,
) -> list[Point]:
    """The frontier between a limit's cost and the score, or another limit's cost.

    Args:
        problem: what to choose from; no decisions.
        along: the index of the limit, one from above, to move.
        points: of the grid.
        value: the index of the limit whose cost is to be had; None for the score.
        tolerance: values known to be within this of the least will do; the difference shows in the bound.
        time_limit_s: seconds for each point.
        on_point: called after each point of the grid.

    Returns:
        The points that no other dominates, the tightest limit first; none where nothing is within the other limits.
        Points of the grid whose choice is that of a tighter one are left out.

    Raises:
        ValueError: the problem has decisions, or the limit bounds from below.
    """
    limit = problem.limits[along]
    if problem.decisions or limit.is_least:
        raise ValueError("no decisions, and a limit from above to move")
    had = problem if value is None else with_cost_as_score(problem, value)
    costs = [[choice.costs[along] for choice in group] for group in problem.groups]
    spread = sum(max(group) - min(group) for group in costs)
    tense = dropped(with_cost_as_score(problem, along), along)
    # Layers that cost alike can be exchanged for each other, and to prove the very least may take for ever.
    least = solve(tense, time_limit_s, tolerance=_END_TOLERANCE * spread)
    most = solve(dropped(had, along), time_limit_s)
    if not isinstance(least, Optimal | Feasible) or not isinstance(most, Optimal | Feasible):
        return []
    ends = limit.fixed + least.score, limit.fixed + _cost(problem, along, most.chosen)
    prepared, memory, best = prepare(had), Memory(), None
    found: list[Point] = []
    for at in np.linspace(*ends, points):
        here = _moved_to(prepared, along, float(at))
        answer = solve_prepared(here, time.monotonic() + time_limit_s, tolerance, best=best, memory=memory)
        on_point()
        if isinstance(answer, Optimal | Feasible):
            best = Found(columns_G=columns_of(had, answer.chosen), score=answer.score, bound=answer.bound)
            cost = limit.fixed + _cost(problem, along, answer.chosen)
            found.append(
                Point(limit=float(at), spent=cost, value=answer.score, bound=answer.bound, chosen=answer.chosen)
            )
    fixed = 0.0 if value is None else problem.limits[value].fixed
    return [replace(point, value=point.value + fixed, bound=point.bound + fixed) for point in undominated(found)]


def undominated(points: list[Point]) -> list[Point]:
    """The points that no other is as good as in both quantities; of equal ones the first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.spent, p.value)):
        if not kept or point.value < kept[-1].value:
            kept.append(point)
    return kept


def with_score_limit(problem: Problem, most: float) -> Problem:
    """The problem with one more limit, on the sum of scores."""
    groups = tuple(tuple(replace(c, costs=(*c.costs, c.score)) for c in group) for group in problem.groups)
    limit = Limit(text=f"score <= {most:.4g}", fixed=0.0, limit=most)
    return replace(problem, groups=groups, limits=(*problem.limits, limit))


def with_cost_as_score(problem: Problem, index: int) -> Problem:
    """The problem of the least cost under one limit, without pairs."""
    groups = tuple(tuple(replace(c, score=c.costs[index]) for c in group) for group in problem.groups)
    return replace(problem, groups=groups, pairs=())


def dropped(problem: Problem, index: int) -> Problem:
    """The problem without one of its limits."""
    groups = tuple(
        tuple(replace(c, costs=c.costs[:index] + c.costs[index + 1 :]) for c in group) for group in problem.groups
    )
    return replace(problem, groups=groups, limits=problem.limits[:index] + problem.limits[index + 1 :])


def _cost(problem: Problem, index: int, chosen: Sequence[Choice]) -> float:
    """What the choices at the places of `chosen`, whatever else was changed of them, cost under one limit."""
    costs = {choice.candidates: choice.costs[index] for group in problem.groups for choice in group}
    return sum(costs[choice.candidates] for choice in chosen)


def _moved_to(prepared: Prepared, along: int, at: float) -> Prepared:
    limit = replace(prepared.problem.limits[along], limit=at)
    limits = (*prepared.problem.limits[:along], limit, *prepared.problem.limits[along + 1 :])
    room_R = prepared.arrays.room_R.copy()
    room_R[along] = limit.end - limit.fixed
    return replace(
        prepared,
        problem=replace(prepared.problem, limits=limits),
        arrays=replace(prepared.arrays, room_R=room_R),
    )
