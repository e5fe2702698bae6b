"""Why a plan is as it is, and why there is none: what binds and at what price, what clashes and what would fit."""

import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.search.frontier import dropped, with_cost_as_score
from blockwright.search.problem import Limit, Problem, holds
from blockwright.search.relaxation import relax
from blockwright.search.solve import Answer, Feasible, Infeasible, NothingFound, Optimal, prepare, reachable, solve

_BISECTIONS = 30
"""Enough to come near a share of 10⁻⁸: less is rounding."""
_NEAR = 1e-3
"""Of what choices can change of a cost: nearer the least need not be known. Amounts are shown with three digits."""
_ANY = 1e300
"""A tolerance that every choice is within."""
_MOST_LOOSENING = 64.0
"""Limits are loosened to at most so many times what they are."""
_MOST_SHARES = 4
"""One question of many may take a quarter of the time left for all, so that easy ones after it are answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How far one limit must move for some choice to be within all."""

    text: str
    limit: float
    is_least: bool
    """Whether it bounds from below."""
    alone: float | None
    """The best that any choice reaches of this one, all others and the rules left aside; None where it has no end."""
    needed: float | None
    """Where it may stand for some choice to be within, the others kept; None where none was found."""
    bound: float | None
    """Nearer to the limit nothing will do; None where that is not known."""
    is_proven: bool
    """Whether the limit must move as far as `needed`, to a thousandth of what choices can change of the cost; or, where
    none was found, whether the others clash by themselves."""
    at: dict[str, str]
    """The alternative that the limit belongs to, the easiest of those there are; empty where it always holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Why no choice is within all limits."""

    clashing: tuple[str, ...]
    """Budgets that no choice is within together; empty where none were found in time."""
    is_smallest: bool
    """Whether any fewer budgets are known to be met by some choice."""
    moves: tuple[Move, ...]
    """One for each budget; of a range the end that cannot be met even alone, at alternatives the easiest."""
    loosening: float | None
    """A share by which it is enough to loosen all budgets together, 0.05 for 5 %; None where none was found."""
    is_least_loosening: bool
    """Whether less is known not to be enough, to a thousandth; or, where none was found, that much is too little."""
    rules: tuple[str, ...] = ()
    """Rules any one of which, left out, lets some choice be within all limits."""


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
    return solve(_tense(problem, index), time_limit_s, tolerance=_ANY)


def explain_clash(problem: Problem, time_limit_s: float, inverse: Collection[str] = ()) -> Clash:
    """Why no choice is within all limits.

    Args:
        problem: one that has no choice within its limits.
        time_limit_s: seconds for all; what clashes, the moves and the loosening may each take an equal share, and what
            one leaves is the next one's.
        inverse: texts of budgets whose limits are on one over what was asked for, as latencies are for throughputs.
    """
    deadline = time.monotonic() + time_limit_s
    texts = list(dict.fromkeys(limit.text for limit in problem.limits))
    clashing, is_smallest = _smallest_clash(problem, texts, _share(deadline, 3))
    half = time.monotonic() + _share(deadline, 2)
    asked = list(dict.fromkeys(limit.text for limit in problem.limits if not limit.is_rule))
    moves = [_move(problem, text, _share(half, len(asked) - place)) for place, text in enumerate(asked)]
    loosening, is_least = _loosening(problem, inverse, _share(deadline, 1))
    return Clash(
        clashing=clashing,
        is_smallest=is_smallest,
        moves=tuple(moves),
        loosening=loosening,
        is_least_loosening=is_least,
    )


def is_shut_by_rules(problem: Problem, time_limit_s: float) -> bool:
    """Whether no choice keeps the rules, whatever the budgets."""
    rules = [limit.text for limit in problem.limits if limit.is_rule]
    return isinstance(fits(_only(problem, rules), time_limit_s), Infeasible)


def _share(deadline: float, num_left: int) -> float:
    """Seconds that one of so many questions may take, all of them before a deadline."""
    return max(0.0, deadline - time.monotonic()) / num_left


def _smallest_clash(problem: Problem, texts: Sequence[str], time_limit_s: float) -> tuple[tuple[str, ...], bool]:
    """A smallest set of budgets that clash, and whether it is known to be one; empty where none was found."""
    deadline, is_smallest = time.monotonic() + time_limit_s, True
    for size in range(1, len(texts) + 1):
        for some in itertools.combinations(texts, size):
            left_s = _share(deadline, _MOST_SHARES if size < len(texts) else 1)
            if left_s <= 0:
                return (), False
            answer = fits(_only(problem, some), left_s)
            if isinstance(answer, Infeasible):
                return some, is_smallest
            is_smallest = is_smallest and not isinstance(answer, NothingFound)
    return (), False


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


def _move(problem: Problem, text: str, time_limit_s: float) -> Move:
    """The easiest move among the limits of one budget.

    Of a range an end that no choice reaches by itself is the one to move: the other cannot help.
    """
    ends, deadline = reachable(problem), time.monotonic() + time_limit_s
    by_alternative: dict[tuple[str, str] | None, list[int]] = {}
    for index, limit in enumerate(problem.limits):
        if limit.text == text:
            by_alternative.setdefault(limit.when, []).append(index)
    looked_at: list[int] = []
    for indices in by_alternative.values():
        looked_at += [i for i in indices if not problem.limits[i].allows(ends[i])] or indices
    moves = [
        _move_of(problem, index, ends[index], _share(deadline, len(looked_at) - place))
        for place, index in enumerate(looked_at)
    ]
    easiest = min(moves, key=_distance)
    return replace(easiest, is_proven=all(move.is_proven for move in moves))


def _distance(move: Move) -> float:
    return np.inf if move.needed is None else abs(move.needed - move.limit) / max(abs(move.limit), 1e-300)


def _move_of(problem: Problem, index: int, alone: float, time_limit_s: float) -> Move:
    limit = problem.limits[index]
    answer, tolerance = _nearest(problem, index, time_limit_s)
    needed = bound = None
    is_proven = isinstance(answer, Infeasible)
    if isinstance(answer, Optimal | Feasible):
        sign, pick = (-1.0, min) if limit.is_least else (1.0, max)
        needed = limit.fixed + sign * answer.score
        is_proven = answer.score - answer.bound <= tolerance
        if np.isfinite(answer.bound):
            bound = pick(limit.limit, limit.fixed + sign * answer.bound)
    return Move(
        text=limit.text,
        limit=limit.limit,
        is_least=limit.is_least,
        alone=alone,
        needed=needed,
        bound=bound,
        is_proven=is_proven,
        at={} if limit.when is None else dict([limit.when]),
    )


def _nearest(problem: Problem, index: int, time_limit_s: float) -> tuple[Answer, float]:
    """The choice that costs least, or most where the limit is a least, within the others; and how near that is."""
    limit = problem.limits[index]
    if limit.when is not None:  # what the others allow at this very alternative
        others = [i for i, other in enumerate(problem.limits) if other.when and other.when[0] == limit.when[0]]
        for other in reversed([i for i in others if problem.limits[i].when != limit.when]):
            problem = dropped(problem, other)
            index -= other < index
    costs = [[choice.costs[index] for choice in group] for group in problem.groups]
    tolerance = _NEAR * sum(max(group) - min(group) for group in costs)
    return solve(dropped(_tense(problem, index), index), time_limit_s, tolerance), tolerance * (1 + 1e-9)


def _loosening(problem: Problem, inverse: Collection[str], time_limit_s: float) -> tuple[float | None, bool]:
    """A share that is enough, by halving, and whether less is known not to be.

    Limits of rules, which have no amount to loosen, stay.
    """
    deadline = time.monotonic() + time_limit_s

    def try_share(share: float) -> Answer:
        loose = problem
        for index, limit in enumerate(problem.limits):
            if not limit.is_rule:
                moved = _moved(limit, share, limit.text in inverse)
                loose = _with_limit(loose, index, replace(limit, limit=moved))
        return fits(loose, _share(deadline, _MOST_SHARES))

    low, high, excluded = 0.0, 1 / 64, 0.0
    while not isinstance(answer := try_share(high), Optimal | Feasible):
        excluded = high if isinstance(answer, Infeasible) else excluded
        low, high = high, 2 * high
        if low >= _MOST_LOOSENING:
            return None, excluded == low
    for _ in range(_BISECTIONS):
        if high - low <= _NEAR * high:
            break
        middle = (low + high) / 2
        answer = try_share(middle)
        if isinstance(answer, Optimal | Feasible):
            high = middle
        else:
            low = middle
            excluded = middle if isinstance(answer, Infeasible) else excluded
    return high, high - excluded <= _NEAR * high


def _moved(limit: Limit, share: float, is_inverse: bool) -> float:
    """The limit loosened by a share of what was asked for."""
    if not is_inverse:
        return limit.limit + (-share if limit.is_least else share) * abs(limit.limit)
    if limit.is_least:
        return limit.limit / (1 + share)
    return limit.limit / (1 - share) if share < 1 else np.inf


def _tense(problem: Problem, index: int) -> Problem:
    """The problem of coming as far within one limit as can be."""
    tense = with_cost_as_score(problem, index)
    if not problem.limits[index].is_least:
        return tense
    groups = tuple(tuple(replace(choice, score=-choice.score) for choice in group) for group in tense.groups)
    return replace(tense, groups=groups)


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
