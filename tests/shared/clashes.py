"""What stands in the way of a problem, by trying every choice."""

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import replace

from blockwright.search.problem import Limit, Problem, holds, is_within, spent


def all_decided(problem: Problem) -> Iterator[dict[str, str]]:
    for taken in itertools.product(*problem.decisions.values()):
        yield dict(zip(problem.decisions, taken, strict=True))


def kept_limits(problem: Problem, texts: Collection[str]) -> bool:
    """Whether some choice is within the limits of these texts; alternatives that they do not bound stay open."""
    free = replace(
        problem, limits=tuple(left_open(limit) if limit.text not in texts else limit for limit in problem.limits)
    )
    return any(
        is_within(free, chosen, decided)
        for chosen in itertools.product(*problem.groups)
        for decided in all_decided(problem)
    )


def left_open(limit: Limit) -> Limit:
    return replace(limit, limit=-math.inf if limit.is_least else math.inf)


def smallest_clash(problem: Problem) -> tuple[str, ...]:
    texts = list(dict.fromkeys(limit.text for limit in problem.limits))
    sizes = range(1, len(texts) + 1)
    return next(some for n in sizes for some in itertools.combinations(texts, n) if not kept_limits(problem, some))


def reachable_end(problem: Problem, index: int, is_alone: bool) -> float | None:
    """The best that any choice reaches of one limit: of all choices, or of those within the others."""
    limit = problem.limits[index]
    others = replace(problem, limits=(*problem.limits[:index], left_open(limit), *problem.limits[index + 1 :]))
    costs = [
        spent(problem, chosen)[index]
        for chosen in itertools.product(*problem.groups)
        if is_alone
        or any(is_within(others, chosen, decided) for decided in all_decided(others) if holds(limit, decided))
    ]
    return (max if limit.is_least else min)(costs, default=None)


def easiest(problem: Problem, text: str) -> tuple[float, float | None, float]:
    """Reachable alone, needed with the others kept, and what choices can change, of a budget's easiest limit.

    Of a range, an end that nothing reaches is the one to move.
    """
    ends, short = [], []
    for index, limit in enumerate(problem.limits):
        if limit.text == text:
            alone, needed = reachable_end(problem, index, is_alone=True), reachable_end(problem, index, is_alone=False)
            assert alone is not None
            far = math.inf if needed is None else abs(needed - limit.limit) / abs(limit.limit)
            costs = [[choice.costs[index] for choice in group] for group in problem.groups]
            ends.append((far, alone, needed, sum(max(group) - min(group) for group in costs)))
            short.append(limit.when is None and not limit.allows(alone))
    kept = [end for end, is_short in zip(ends, short, strict=True) if is_short] or ends
    return min(kept, key=lambda end: end[0])[1:]


def loosened(problem: Problem, share: float, inverse: str = "") -> Problem:
    def moved(limit: Limit) -> float:
        if limit.text != inverse:
            return limit.limit + (-1 if limit.is_least else 1) * share * abs(limit.limit)
        asked = (1 / limit.limit) * (1 + share if limit.is_least else 1 - share)
        return 1 / asked if asked > 0 else math.inf

    return replace(problem, limits=tuple(replace(limit, limit=moved(limit)) for limit in problem.limits))
