"""Beyond sums of scores: the search goes on around a plan that was measured as a whole. Loads no torch.

A score says what one candidate loses in the parent. In a child from which much was taken it loses something else, so
the best sum of scores need not be the best child. What a candidate c changes in a child P is measured there:

    d_c = KL(parent ‖ P with c in place) − KL(parent ‖ P),     0 for what P holds

Sums of d are right for children that differ from P in one part, and near it they are better than sums of scores. So the
next children are the best sums of d within a radius: those that hold at most k other candidates than P, for several k.
They are measured as wholes, the best one takes P's place, and so on (trust regions; Conn, Gould and Toint 2000).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.search.pool import pool
from blockwright.search.problem import Choice, Limit, Pair, Problem
from blockwright.spec import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Additivity:
    """How far sums of scores are from what whole plans lose."""

    num_plans: int
    r_squared: float | None
    """Of a line through sums and measured values; None where fewer than three plans, or equal sums, allow none."""
    slope: float | None
    intercept: float | None
    mean_ratio: float
    """Measured over summed, on average."""
    residuals: tuple[float, ...]
    """Measured less summed, plan by plan."""


def around(problem: Problem, chosen: Sequence[Choice], changes: Mapping[Candidate, float], radius: int) -> Problem:
    """The problem of the best change of a plan: what candidates change there in place of scores, within a radius.

    Args:
        problem: what to choose from; groups of single candidates.
        chosen: the plan, a choice of each group.
        changes: d_c of every candidate that the plan does not hold.
        radius: the most groups in which another choice may be taken.
    """
    held = {choice.candidates for choice in chosen}
    parts = {candidate for choice in chosen for candidate in choice.candidates}

    def moved(choice: Choice) -> Choice:
        is_held = choice.candidates in held
        score = sum(changes[candidate] for candidate in choice.candidates if candidate not in parts)
        return replace(choice, score=score, costs=(*choice.costs, 0.0 if is_held else 1.0))

    groups = tuple(tuple(moved(choice) for choice in group) for group in problem.groups)
    limit = Limit(text=f"at most {radius} changes", fixed=0.0, limit=float(radius))
    return replace(problem, groups=groups, limits=(*problem.limits, limit), pairs=())


def next_plans(
    problem: Problem,
    chosen: Sequence[Choice],
    changes: Mapping[Candidate, float],
    radii: Sequence[int],
    plans_per_radius: int,
    time_limit_s: float,
) -> list[tuple[Choice, ...]]:
    """The best changes of a plan within each radius, as plans of the problem; each once, the plan itself not."""
    found: dict[tuple[Choice, ...], None] = {}
    for radius in radii:
        nearby = around(problem, chosen, changes, radius)
        for answer in pool(nearby, plans_per_radius, 1, time_limit_s=time_limit_s):
            found[apart(problem, answer.chosen)] = None
    found.pop(tuple(chosen), None)
    return list(found)


def apart(problem: Problem, chosen: Sequence[Choice]) -> tuple[Choice, ...]:
    """A choice, of whole blocks or with other scores, in the groups of the problem."""
    taken = {candidate for choice in chosen for candidate in choice.candidates}
    return tuple(next(choice for choice in group if taken.issuperset(choice.candidates)) for group in problem.groups)


def pairs_to_measure(
    plans: Sequence[Sequence[Choice]], own: set[Candidate], most: int
) -> list[tuple[Candidate, Candidate]]:
    """The pairs of candidates that good plans hold most often, those that stand nearest to each other first."""
    count: dict[tuple[Candidate, Candidate], int] = {}
    for plan in plans:
        taken = [candidate for choice in plan for candidate in choice.candidates if candidate not in own]
        taken.sort(key=lambda candidate: (candidate.layer, candidate.part == "ffn"))
        for index, first in enumerate(taken):
            for second in taken[index + 1 :]:
                count[first, second] = count.get((first, second), 0) + 1
    order = sorted(count, key=lambda pair: (-count[pair], pair[1].layer - pair[0].layer, pair[0].layer))
    return list(order[:most])


def pairs_of(values: Mapping[tuple[Candidate, ...], float], scores: Mapping[Candidate, float]) -> tuple[Pair, ...]:
    """What measured pairs lose beyond the sum of their scores, which must come from the same text."""
    return tuple(
        Pair(first=first, second=second, score=value - scores[first] - scores[second])
        for (first, second), value in values.items()
    )


def additivity(sums: Sequence[float], measured: Sequence[float]) -> Additivity:
    """How far sums of scores are from what whole plans were measured to lose; of one plan at least."""
    x, y = np.array(sums), np.array(measured)
    line = np.polyfit(x, y, 1) if len(x) > 2 and np.ptp(x) > 0 else None
    r_squared = None
    if line is not None and np.ptp(y) > 0:
        r_squared = float(1 - ((y - np.polyval(line, x)) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return Additivity(
        num_plans=len(x),
        r_squared=r_squared,
        slope=None if line is None else float(line[0]),
        intercept=None if line is None else float(line[1]),
        mean_ratio=float(np.mean(y[x > 0] / x[x > 0])) if (x > 0).any() else 1.0,
        residuals=tuple(map(float, y - x)),
    )
