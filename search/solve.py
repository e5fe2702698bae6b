"""The best choice there is, with its proof.

Without pairs and rules on blocks the problem is handed to `enumerate.py`, over prices from `relaxation.py`; with them,
to CP-SAT (`general.py`). Decisions are taken one by one: the relaxation without the limits of those still open bounds
all ways to take them, the way with the best bound is gone on with, and what is left when no bound is better than what
was found is never looked at. Every choice found is summed and checked again here, in the order of the problem and with
its tolerance.
"""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.search.arrays import Arrays
from blockwright.search.core import Found
from blockwright.search.decisions import Way
from blockwright.search.enumerate import find_best
from blockwright.search.general import Structure, find_with_structure
from blockwright.search.problem import Choice, Limit, Problem, is_within, score_of
from blockwright.spec import Candidate

_LAST_DIGITS = 1e-11
"""Of a score: what the difference between it and its bound may be off by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimal:
    """The best choice there is, proven."""

    chosen: tuple[Choice, ...]
    score: float
    bound: float
    """No choice within the limits has a lower score than this, to the last digits of floating point."""
    decided: dict[str, str]
    """The alternative that each decision takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasible:
    """A choice within the limits that the time limit, or the tolerance asked for, left unproven."""

    chosen: tuple[Choice, ...]
    score: float
    bound: float
    decided: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """No choice is within all limits."""

    reachable: tuple[float, ...]
    """For each limit the best that any choice reaches, the others left aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingFound:
    """The time limit passed before a choice was found or excluded."""


Answer = Optimal | Feasible | Infeasible | NothingFound


def is_settled(answer: Answer, tolerance: float) -> bool:
    """Whether time was enough: nothing is better than this by more than the tolerance."""
    if isinstance(answer, Feasible):
        return answer.score - answer.bound <= tolerance + _LAST_DIGITS * abs(answer.score)
    return not isinstance(answer, NothingFound)


def solve(problem: Problem, time_limit_s: float = 60.0, tolerance: float = 0.0) -> Answer:
    """Solves the problem.

    Args:
        problem: what to choose from.
        time_limit_s: seconds after which the best choice so far is given as `Feasible`.
        tolerance: a score that is known to be within this of the least will do, and is given as `Feasible`.
    """
    return solve_prepared(prepare(problem), time.monotonic() + time_limit_s, tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A problem and its arrays, to solve variants of it without making them anew."""

    problem: Problem
    arrays: Arrays
    """Every limit as a row that bounds from above, not scaled; rows of pools after them."""
    structure: Structure | None
    column_of: dict[int, int]
    """Each choice's column, by the identity of the choice."""
    limits: tuple[Limit, ...]
    """The problem's, or these in place of them."""

    def columns_of(self, chosen: Sequence[Choice]) -> np.ndarray:
        """The columns of choices of the problem itself."""
        return np.array([self.column_of[id(choice)] for choice in chosen])

    def with_limit(self, index: int, limit: Limit) -> "Prepared":
        """The problem with one limit moved, which costs nothing of its size."""
        room_R = self.arrays.room_R.copy()
        room_R[index] = (-1.0 if limit.is_least else 1.0) * (limit.end - limit.fixed)
        limits = (*self.limits[:index], limit, *self.limits[index + 1 :])
        return replace(self, limits=limits, arrays=replace(self.arrays, room_R=room_R))


def prepare(problem: Problem) -> Prepared:
    """Turns a problem into arrays."""
    choices = [choice for group in problem.groups for choice in group]
    sign_R = np.array([-1.0 if limit.is_least else 1.0 for limit in problem.limits])
    costs_CR = np.array([choice.costs for choice in choices], dtype=np.float64).reshape(len(choices), len(sign_R))
    arrays = Arrays(
        scores_C=np.array([choice.score for choice in choices], dtype=np.float64),
        costs_CR=costs_CR * sign_R,
        room_R=sign_R * np.array([limit.end - limit.fixed for limit in problem.limits]),
        group_C=np.repeat(np.arange(len(problem.groups)), [len(group) for group in problem.groups]),
    )
    return Prepared(
        problem=problem,
        arrays=arrays,
        structure=_structure(problem, choices),
        column_of={id(choice): column for column, choice in enumerate(choices)},
        limits=problem.limits,
    )


@dataclass(slots=True, kw_only=True)
class Memory:
    """What was learnt from problems of the kind: those that differ in the room of a row, or by further rows."""

    prices_R: np.ndarray | None = None
    learnt_MR: np.ndarray | None = None
    floor: float = -np.inf
    """No choice has a lower score; set by the caller, who knows how the problems differ."""

    def with_row(self) -> None:
        """Makes place for one more row, which has no price yet."""
        if self.prices_R is not None:
            self.prices_R = np.append(self.prices_R, 0.0)
        if self.learnt_MR is not None:
            self.learnt_MR = np.column_stack([self.learnt_MR, np.zeros(len(self.learnt_MR))])


def solve_prepared(
    prepared: Prepared,
    deadline: float,
    tolerance: float = 0.0,
    best: Found | None = None,
    memory: Memory | None = None,
) -> Answer:
    """As `solve`, until a deadline on `time.monotonic`.

    Args:
        prepared: the problem.
        deadline: when to stop.
        tolerance: as `solve`.
        best: a choice that is within all limits, if one is known; none where there are decisions.
        memory: read, and written for the next problem; used where there are no decisions.
    """
    problem, decisions = prepared.problem, list(prepared.problem.decisions.items())
    decided: dict[str, str] = {}
    memory = Memory() if memory is None or decisions else memory
    gain = sum(min(0.0, pair.score) for pair in problem.pairs)  # which relaxations leave out
    arrays, _ = prepared.arrays.scaled()
    ways, bound = [Way.untaken(arrays)], np.inf
    while ways:
        way = heapq.heappop(ways)
        if time.monotonic() > deadline or (best is not None and way.bound + gain >= best.score - tolerance):
            bound = min(bound, way.bound + gain)
            break
        if way.relaxation is None:
            if (relaxed := way.relaxed(prepared.limits, arrays, memory.prices_R)) is not None:
                heapq.heappush(ways, relaxed)
        elif len(way.decided) < len(decisions):
            for further in way.taking(*decisions[len(way.decided)]):
                heapq.heappush(ways, further)
        else:
            found = _find(prepared, arrays, way, deadline, tolerance, best, memory)
            bound = min(bound, max(found.bound, way.bound + gain))
            if found.columns_G is not None and (best is None or found.score < best.score):
                best, decided = found, way.decided
    if best is None:
        return Infeasible(reachable=reachable(problem)) if bound == np.inf else NothingFound()
    chosen = chosen_of(problem, best)
    score = score_of(problem, chosen)
    precision = 1e-11 * max(1e-300, float(np.abs(prepared.arrays.scores_C).max(initial=0.0))) * len(problem.groups)
    is_proven = bound >= score - precision
    return (Optimal if is_proven else Feasible)(
        chosen=chosen, score=score, bound=score if is_proven else bound, decided=decided
    )


def reachable(problem: Problem) -> tuple[float, ...]:
    """For each limit the least that any choice costs, or the most where the limit is a least; rules left aside."""
    ends = []
    for index, limit in enumerate(problem.limits):
        pick = max if limit.is_least else min
        ends.append(limit.fixed + sum(pick(choice.costs[index] for choice in group) for group in problem.groups))
    return tuple(ends)


def chosen_of(problem: Problem, found: Found) -> tuple[Choice, ...]:
    """The choices behind columns."""
    assert found.columns_G is not None
    starts = np.cumsum([0, *(len(group) for group in problem.groups)])
    return tuple(group[c - start] for group, c, start in zip(problem.groups, found.columns_G, starts, strict=False))


def columns_of(problem: Problem, chosen: Sequence[Choice]) -> np.ndarray:
    """The columns of choices."""
    starts = np.cumsum([0, *(len(group) for group in problem.groups)])
    pairs = zip(problem.groups, chosen, starts, strict=False)
    return np.array([start + group.index(choice) for group, choice, start in pairs])


def _find(
    prepared: Prepared,
    arrays: Arrays,
    way: Way,
    deadline: float,
    tolerance: float,
    best: Found | None,
    memory: Memory,
) -> Found:
    problem, held = prepared.problem, way.held(prepared.limits, arrays)
    assert way.relaxation is not None

    def accept(columns_G: np.ndarray) -> bool:
        chosen = chosen_of(problem, Found(columns_G=columns_G, score=0.0, bound=0.0))
        return is_within(problem, chosen, way.decided, prepared.limits)

    if prepared.structure is not None:
        return find_with_structure(held, prepared.structure, deadline=deadline, tolerance=tolerance, accept=accept)
    found = find_best(
        held,
        way.relaxation,
        deadline=deadline,
        tolerance=tolerance,
        best=best,
        accept=accept,
        floor=memory.floor,
        learnt_MR=memory.learnt_MR,
    )
    if not problem.decisions:
        memory.prices_R, memory.learnt_MR = way.relaxation.prices_R, found.prices_MR
    return found


def _structure(problem: Problem, choices: Sequence[Choice]) -> Structure | None:
    if not problem.pairs and problem.most_shapes is None and not problem.is_contiguous:
        return None
    columns: dict[Candidate, list[int]] = {}
    for index, choice in enumerate(choices):
        for candidate in choice.candidates:
            columns.setdefault(candidate, []).append(index)
    pairs = [
        (first, second, pair.score)
        for pair in problem.pairs
        for first in columns.get(pair.first, [])
        for second in columns.get(pair.second, [])
    ]
    numbers = {shape: n for n, shape in enumerate(dict.fromkeys(c.shape for c in choices if not c.is_removed))}
    return Structure(
        pairs=tuple(pairs),
        shape_C=np.array([-1 if choice.is_removed else numbers[choice.shape] for choice in choices]),
        most_shapes=problem.most_shapes,
        is_contiguous=problem.is_contiguous,
    )
