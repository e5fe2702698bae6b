"""Why a plan is as it is, and why there is none: what binds and at what price, what clashes and what would fit."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.search.frontier import dropped, with_cost_as_score
from blockwright.search.problem import Limit, Problem, holds
from blockwright.search.relaxation import relax
from blockwright.search.solve import Answer, Feasible, Infeasible, Optimal, prepare, reachable, solve

_BISECTIONS = 20
"""To one millionth of the range looked at."""
_ANY = 1e300
"""A tolerance that every choice is within."""
_MOST_LOOSENING = 64.0
"""Limits are loosened to at most so many times what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How far one limit must move for some choice to be within all."""

    text: str
    limit: float
    alone: float
    """The best that any choice reaches of this one, all others left aside."""
    needed: float | None
    """Where it must stand if the others stay; None where they clash by themselves."""
    is_least: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Why no choice is within all limits."""

    clashing: tuple[str, ...]
    """A smallest set of budgets that no choice is within; empty where that could not be told in time."""
    moves: tuple[Move, ...]
    """One for each limit; at a decision's alternatives, the easiest."""
    loosening: float | None
    """The least share by which all limits must be loosened together, 0.05 for 5 %; None where much is too little."""


def prices(problem: Problem, decided: dict[str, str]) -> list[float]:
    """What a unit more of each limit is worth, in score: the prices of the linear relaxation, without pairs and rules.

    Zero for limits that do not bind, and for those of alternatives that were not taken.
    """
    arrays = prepare(replace(problem, pairs=(), most_shapes=None, is_contiguous=False)).arrays
    kept = [index for index, limit in enumerate(problem.limits) if holds(limit, decided)]
    scaled, factor_R = arrays.with_rows(kept).scaled()
    relaxation = relax(scaled)
    found = [0.0] * len(problem.limits)
    if relaxation is not None:
        for index, price in zip(kept, relaxation.prices_R * factor_R, strict=True):
            found[index] = float(price)
    return found


def is_binding(problem: Problem, index: int, answer: Optimal | Feasible, time_limit_s: float) -> bool:
    """Whether a better score than any with it would be possible without one limit, all others kept."""
    if not holds(problem.limits[index], answer.decided):
        return False
    freed = solve(_without(problem, index), time_limit_s)
    scale = max((abs(choice.score) for group in problem.groups for choice in group), default=0.0)
    return isinstance(freed, Optimal | Feasible) and freed.score < answer.bound - 1e-9 * scale


def fits(problem: Problem, time_limit_s: float) -> Answer:
    """Some choice within all limits, sooner than the best one where scores say nothing.

    What presses hardest is made as small as can be, since a search with nothing to lose has nothing to go by.
    """
    if not problem.limits:
        return solve(problem, time_limit_s)
    spread = [_pressure(problem, index) for index in range(len(problem.limits))]
    index = int(np.argmax(spread))
    tense = with_cost_as_score(problem, index)
    if problem.limits[index].is_least:
        groups = tuple(tuple(replace(choice, score=-choice.score) for choice in group) for group in tense.groups)
        tense = replace(tense, groups=groups)
    return solve(tense, time_limit_s, tolerance=_ANY)


def explain_clash(problem: Problem, time_limit_s: float) -> Clash:
    """Why no choice is within all limits.

    Args:
        problem: one that has no choice within its limits.
        time_limit_s: seconds after which what is known is given.
    """
    deadline = time.monotonic() + time_limit_s
    texts = list(dict.fromkeys(limit.text for limit in problem.limits))
    return Clash(
        clashing=_smallest_clash(problem, texts, deadline),
        moves=tuple(_move(problem, text, deadline) for text in texts),
        loosening=_loosening(problem, deadline),
    )


def is_shut_by_rules(problem: Problem, time_limit_s: float) -> bool:
    """Whether no choice keeps the rules on blocks, whatever the limits."""
    return isinstance(fits(_only(problem, ()), time_limit_s), Infeasible)


def _smallest_clash(problem: Problem, texts: Sequence[str], deadline: float) -> tuple[str, ...]:
    for size in range(1, len(texts) + 1):
        for some in itertools.combinations(texts, size):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return ()
            if isinstance(fits(_only(problem, some), left_s), Infeasible):
                return some
    return ()


def _only(problem: Problem, texts: Sequence[str]) -> Problem:
    """The problem with the limits of some budgets; decisions are kept, since a limit left out allows everything."""
    for index in reversed(range(len(problem.limits))):
        if problem.limits[index].text not in texts:
            problem = _without(problem, index)
    return problem


def _without(problem: Problem, index: int) -> Problem:
    """The problem without a limit; its alternative, if it belongs to one, stays."""
    return dropped(problem, index) if problem.limits[index].when is None else _loosened(problem, index)


def _loosened(problem: Problem, index: int) -> Problem:
    """The problem with a limit that everything is within; it still says which alternatives there are."""
    limit = problem.limits[index]
    pick = min if limit.is_least else max
    end = limit.fixed + sum(pick(choice.costs[index] for choice in group) for group in problem.groups)
    return _with_limit(problem, index, replace(limit, limit=end))


def _move(problem: Problem, text: str, deadline: float) -> Move:
    """The easiest move among the limits of one budget."""
    indices = [index for index, limit in enumerate(problem.limits) if limit.text == text]
    ends = reachable(problem)
    candidates = []
    for index in indices:
        limit = problem.limits[index]
        needed = _needed(problem, index, deadline)
        far = np.inf if needed is None else abs(needed - limit.limit) / max(abs(limit.limit), 1e-300)
        alone = ends[index]
        candidates.append(
            (far, Move(text=text, limit=limit.limit, alone=alone, needed=needed, is_least=limit.is_least))
        )
    return min(candidates, key=lambda pair: pair[0])[1]


def _needed(problem: Problem, index: int, deadline: float) -> float | None:
    limit = problem.limits[index]
    if limit.when is not None:  # what the others allow at this very alternative
        others = [i for i, other in enumerate(problem.limits) if other.when and other.when[0] == limit.when[0]]
        for other in reversed([i for i in others if problem.limits[i].when != limit.when]):
            problem = dropped(problem, other)
            index -= other < index
    tense = with_cost_as_score(problem, index)
    if limit.is_least:
        groups = tuple(tuple(replace(choice, score=-choice.score) for choice in group) for group in tense.groups)
        tense = replace(tense, groups=groups)
    answer = solve(dropped(tense, index), max(0.0, deadline - time.monotonic()))
    if not isinstance(answer, Optimal | Feasible):
        return None
    return limit.fixed + (-answer.score if limit.is_least else answer.score)


def _loosening(problem: Problem, deadline: float) -> float | None:
    """The least share, by halving; limits of rules, which have no amount to loosen, stay."""

    def is_enough(share: float) -> bool:
        loose = problem
        for index, limit in enumerate(problem.limits):
            if limit.text.startswith("servable by"):
                continue
            step = share * abs(limit.limit) * (-1 if limit.is_least else 1)
            loose = _with_limit(loose, index, replace(limit, limit=limit.limit + step))
        return isinstance(fits(loose, max(0.0, deadline - time.monotonic())), Optimal | Feasible)

    high = 1 / 64
    while not is_enough(high):
        high *= 2
        if high > _MOST_LOOSENING:
            return None
    low = 0.0 if high == 1 / 64 else high / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _with_limit(problem: Problem, index: int, limit: Limit) -> Problem:
    return replace(problem, limits=(*problem.limits[:index], limit, *problem.limits[index + 1 :]))


def _pressure(problem: Problem, index: int) -> float:
    """How near the best that can be reached of a limit lies to it, as a share of what choices can change."""
    limit = problem.limits[index]
    costs = [[choice.costs[index] for choice in group] for group in problem.groups]
    least, most = (limit.fixed + sum(map(pick, costs)) for pick in (min, max))
    if most <= least:
        return -np.inf
    share = (limit.limit - least) / (most - least)
    return share if limit.is_least else 1 - share
