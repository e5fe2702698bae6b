"""Simpler ways to choose blocks, for benchmarks to compare the solver's plan with at equal budgets.

Each takes the solver's own `Problem` and gives a choice within its budgets, or None where it finds none: that
there is none only `solve` can say.
"""

import itertools
import random

from blockwright.search.solve import Choice, Limit, Problem, is_within, spent
from blockwright.spec import Part, Variant

Chosen = tuple[Choice, ...]
"""One choice per group, in the order of the problem's groups."""

_DRAWS_PER_PLAN = 100
"""Random draws after which a plan that keeps being too dear, or one that was found before, is given up."""
_ROUNDING = 1e-12
"""Less excess removed is nothing but the last digits of sums, and could go back and forth for ever."""


def uniform(problem: Problem) -> Chosen | None:
    """The same narrowing in every layer.

    For each part, mixers and ffns alike, there is the option to keep the best-scoring choice of every layer, which
    is the parent's own, and the option of each variant that all layers offer. Of all pairs of a mixer option
    and an ffn option that are within the budgets, the pair with the least sum of scores.
    """
    pairs = itertools.product(_same_everywhere(problem, "mixer"), _same_everywhere(problem, "ffn"))
    choices = [tuple((mixers | ffns)[index] for index in range(len(problem.groups))) for mixers, ffns in pairs]
    return min((chosen for chosen in choices if is_within(problem, chosen)), key=_score, default=None)


def greedy(problem: Problem) -> Chosen | None:
    """Layer by layer the cheapest sacrifice.

    Starts with the best-scoring choice in every group. While a budget is exceeded, takes the swap with the least
    increase of the score per unit of excess removed; the excess is the sum over budgets of what is spent above
    the limit, as a share of the limit. Gives up where no single swap removes any.
    """
    chosen = tuple(min(group, key=lambda choice: choice.score) for group in problem.groups)
    while not is_within(problem, chosen):
        now = spent(problem, chosen)
        swaps = [swap for index in range(len(chosen)) for swap in _swaps(problem, chosen, now, index)]
        if not swaps:
            return None
        index, choice, _ = min(swaps, key=lambda swap: (swap[1].score - chosen[swap[0]].score) / swap[2])
        chosen = _swapped(chosen, index, choice)
    return chosen


def equal_per_layer(problem: Problem) -> Chosen | None:
    """The budget cut into equal slices: what is left beside the fixed costs, divided by the number of layers.

    Each layer takes the pair of mixer and ffn with the least sum of scores within its slice of every budget.
    """
    layers: dict[int, list[int]] = {}
    for index, group in enumerate(problem.groups):
        layers.setdefault(group[0].candidate.layer, []).append(index)
    slices = tuple(
        Limit(text=limit.text, fixed=0.0, limit=(limit.limit - limit.fixed) / len(layers)) for limit in problem.limits
    )
    chosen: dict[int, Choice] = {}
    for indices in layers.values():
        layer = Problem(groups=tuple(problem.groups[index] for index in indices), limits=slices)
        pairs = [pair for pair in itertools.product(*layer.groups) if is_within(layer, pair)]
        if not pairs:
            return None
        chosen |= dict(zip(indices, min(pairs, key=_score), strict=True))
    return tuple(chosen[index] for index in range(len(problem.groups)))


def random_feasible(problem: Problem, count: int, seed: int) -> list[Chosen]:
    """Up to `count` different random choices within the budgets.

    Every group's choice is drawn evenly. While a budget is exceeded, a group is drawn among those where some swap
    removes excess (see `greedy`), and one of those swaps is drawn. Fewer than `count` come back where draws keep
    ending outside the budgets or at choices found before.
    """
    generator = random.Random(seed)
    found: dict[Chosen, None] = {}
    for _ in range(_DRAWS_PER_PLAN * count):
        if len(found) == count:
            break
        chosen = _repaired(problem, tuple(generator.choice(group) for group in problem.groups), generator)
        if chosen is not None:
            found[chosen] = None
    return list(found)


def _same_everywhere(problem: Problem, part: Part) -> list[dict[int, Choice]]:
    """The options of one part: for each the choice of every group of that part, by the group's index."""
    groups = {index: group for index, group in enumerate(problem.groups) if group[0].candidate.part == part}
    by_variant: dict[Variant, dict[int, Choice]] = {}
    for index, group in groups.items():
        for choice in group:
            by_variant.setdefault(choice.candidate.variant, {})[index] = choice
    own = {index: min(group, key=lambda choice: choice.score) for index, group in groups.items()}
    return [own, *(choices for choices in by_variant.values() if len(choices) == len(groups))]


def _repaired(problem: Problem, chosen: Chosen, generator: random.Random) -> Chosen | None:
    while not is_within(problem, chosen):
        now = spent(problem, chosen)
        order = generator.sample(range(len(chosen)), len(chosen))
        swaps = next((swaps for index in order if (swaps := _swaps(problem, chosen, now, index))), None)
        if swaps is None:
            return None
        index, choice, _ = generator.choice(swaps)
        chosen = _swapped(chosen, index, choice)
    return chosen


def _swaps(problem: Problem, chosen: Chosen, now: list[float], index: int) -> list[tuple[int, Choice, float]]:
    """The swaps in one group that remove excess from what is spent now: index, new choice, excess removed."""
    old = chosen[index]
    excess = _excess(problem, now)
    swaps: list[tuple[int, Choice, float]] = []
    for choice in problem.groups[index]:
        after = [cost - a + b for cost, a, b in zip(now, old.costs, choice.costs, strict=True)]
        removed = excess - _excess(problem, after)
        if removed > _ROUNDING:
            swaps.append((index, choice, removed))
    return swaps


def _excess(problem: Problem, costs: list[float]) -> float:
    return sum(
        max(0.0, cost - limit.limit) / (limit.limit or 1.0) for cost, limit in zip(costs, problem.limits, strict=True)
    )


def _swapped(chosen: Chosen, index: int, choice: Choice) -> Chosen:
    return (*chosen[:index], choice, *chosen[index + 1 :])


def _score(chosen: Chosen) -> float:
    return sum(choice.score for choice in chosen)
