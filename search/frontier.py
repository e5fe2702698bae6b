"""The Pareto frontier: the best that can be had of one quantity at each limit of another.

On a grid of limits from the least that can be reached, the other limits kept, to what the best choice takes without
this one. The quantity to be had is the sum of scores, or what another limit is about; then the score may be bounded.
The grid is gone through from the tightest limit on: what is within one is within the next, so each point starts from
the one before, and from its prices.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from blockwright.search.core import Found
from blockwright.search.problem import Choice, Limit, Problem
from blockwright.search.solve import (
    Answer,
    Feasible,
    Memory,
    Optimal,
    Prepared,
    is_settled,
    prepare,
    solve,
    solve_prepared,
)

_END_TOLERANCE = 1e-3
"""Of what choices can change of the cost: where the grid begins."""

_PROOF_S = 3.0
"""To prove what is near the best already: layers that cost alike can be exchanged, which may take for ever."""


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
    near: float = 0.0,
    time_limit_s: float = 60.0,
    on_point: Callable[[], None] = lambda: None,
    on_end: Callable[[bool], None] = lambda is_complete: None,
) -> list[Point]:
    """The frontier between a limit's cost and the score, or another limit's cost.

    Args:
        problem: what to choose from; no decisions.
        along: the index of the limit, one from above, to move.
        points: of the grid.
        value: the index of the limit whose cost is to be had; None for the score, which `with_score_limit` bounds.
        tolerance: values known to be within this of the least will do; the difference shows in the bound.
        near: where there is no proof within a few seconds, values known to be within this of the least will do too.
        time_limit_s: seconds for each point, and for each end of the grid, so that all may take points + 2 times this.
        on_point: called after each point of the grid.
        on_end: called at the end with whether time was enough, for the grid's ends and for every point of it.

    Returns:
        The points that no other dominates, the tightest limit first; none where nothing is within the other limits.
        Points of the grid whose choice is that of a tighter one are left out.

    Raises:
        ValueError: the problem has decisions, or the limit bounds from below.
    """
    limit = problem.limits[along]
    if problem.decisions or limit.is_least:
        raise ValueError("no decisions, and a limit from above to move")
    prepared = prepare(problem if value is None else with_cost_as_score(problem, value))
    ends, is_complete = _ends(problem, along, prepared, time_limit_s)
    memory, best, found = Memory(), None, []
    for at in () if ends is None else np.linspace(*ends, points):
        here = prepared.with_limit(along, replace(limit, limit=float(at)))
        deadline = time.monotonic() + time_limit_s
        answer = solve_prepared(here, deadline, max(tolerance, near), best=best, memory=memory)
        if near > tolerance and isinstance(answer, Feasible):
            best = Found(columns_G=prepared.columns_of(answer.chosen), score=answer.score, bound=answer.bound)
            until = min(deadline, time.monotonic() + _PROOF_S)
            answer = _nearer(solve_prepared(here, until, tolerance, best=best, memory=memory), answer)
        is_complete = is_complete and is_settled(answer, max(tolerance, near))
        on_point()
        if isinstance(answer, Optimal | Feasible):
            columns_G = prepared.columns_of(answer.chosen)
            best = Found(columns_G=columns_G, score=answer.score, bound=answer.bound)
            cost = limit.fixed + float(prepared.arrays.costs_CR[columns_G, along].sum())
            found.append(
                Point(limit=float(at), spent=cost, value=answer.score, bound=answer.bound, chosen=answer.chosen)
            )
    on_end(is_complete)
    fixed = 0.0 if value is None else problem.limits[value].fixed
    return [replace(point, value=point.value + fixed, bound=point.bound + fixed) for point in undominated(found)]


def _nearer(answer: Answer, before: Feasible) -> Answer:
    """What is known after a second look: the better choice, and the better bound."""
    if not isinstance(answer, Feasible):
        return answer if isinstance(answer, Optimal) else before
    return replace(answer, bound=max(answer.bound, before.bound))


def _ends(
    problem: Problem, along: int, prepared: Prepared, time_limit_s: float
) -> tuple[tuple[float, float] | None, bool]:
    """The least that can be reached, and what the best choice takes; None where either is not known.

    Returns:
        The ends, and whether time was enough for them.
    """
    limit, costs = problem.limits[along], [[choice.costs[along] for choice in group] for group in problem.groups]
    # Layers that cost alike can be exchanged for each other, and to prove the very least may take for ever.
    tolerance = _END_TOLERANCE * sum(max(group) - min(group) for group in costs)
    least = solve(dropped(with_cost_as_score(problem, along), along), time_limit_s, tolerance=tolerance)
    free = prepared.with_limit(along, replace(limit, limit=np.inf))
    most = solve_prepared(free, time.monotonic() + time_limit_s)
    is_complete = is_settled(least, tolerance) and is_settled(most, 0.0)
    if not isinstance(least, Optimal | Feasible) or not isinstance(most, Optimal | Feasible):
        return None, is_complete
    taken = float(prepared.arrays.costs_CR[prepared.columns_of(most.chosen), along].sum())
    return (limit.fixed + least.score, limit.fixed + taken), is_complete


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
