"""Simpler ways to choose blocks, to compare the solver's plan with at equal budgets.

Each takes the solver's own `Problem` and gives a choice within its limits and rules, or None where it finds none: that
there is none only `solve` can say. Where there are decisions, each way chooses at every alternative, and the best of
what it finds counts. What pairs lose together counts in the sum, but no way here looks at it.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from blockwright.count import block_parameters
from blockwright.search.counts import choose_most
from blockwright.search.problem import Choice, Limit, Problem, holds, is_within, merged, score_of, spent
from blockwright.search.solve import Feasible, Optimal, solve
from blockwright.spec import Block, Candidate, Format, Model, NoOp, Part, Variant, stored_as

Chosen = tuple[Choice, ...]
"""One choice per group, in the order of the problem's groups."""
_Place = tuple[int, Part]
"""A layer's mixer or its ffn."""

_FRUITLESS_DRAWS = 100
"""Random draws in a row that end outside the limits, or at choices found before, after which no more are drawn."""
_ROUNDING = 1e-12
"""Less excess removed is nothing but the last digits of sums, and could go back and forth for ever."""


def uniform(problem: Problem) -> Chosen | None:
    """The same narrowing in every layer.

    For each part, mixers and ffns alike, there is the option to keep the best-scoring choice of every layer, which
    is the parent's own, and the option of each variant, in all layers that offer it. Of all pairs of a mixer option
    and an ffn option that are within the limits, the pair with the least sum of scores.
    """
    wanted = [
        mixers | ffns for mixers in _same_everywhere(problem, "mixer") for ffns in _same_everywhere(problem, "ffn")
    ]
    offered = [chosen for variants in wanted if (chosen := _of_variants(problem, variants)) is not None]

    def choose(settled: Problem) -> Chosen | None:
        return _better(settled, (chosen for chosen in offered if is_within(settled, chosen)))

    return _best(problem, choose)


def greedy(problem: Problem) -> Chosen | None:
    """Layer by layer the cheapest sacrifice.

    Starts with the best-scoring choice in every group. While a limit is exceeded, takes the swap with the least
    increase of the score per unit of excess removed; the excess is the sum over limits of what is spent beyond
    the limit, as a share of the limit. Gives up where no single swap removes any.
    """

    def choose(settled: Problem) -> Chosen | None:
        chosen = tuple(min(group, key=lambda choice: choice.score) for group in settled.groups)
        while not is_within(settled, chosen):
            now = spent(settled, chosen)
            swaps = [swap for index in range(len(chosen)) for swap in _swaps(settled, chosen, now, index)]
            if not swaps:
                return None
            index, choice, _ = min(swaps, key=lambda swap: (swap[1].score - chosen[swap[0]].score) / swap[2])
            chosen = _swapped(chosen, index, choice)
        return chosen

    return _best(problem, choose)


def equal_per_layer(problem: Problem) -> Chosen | None:
    """The limits cut into equal slices: what is left beside the fixed costs, divided by the number of layers.

    Each layer takes the pair of mixer and ffn with the least sum of scores within its slice of every limit. Puzzle's
    greedy baseline (arXiv 2411.19146, section 5).
    """
    layers: dict[int, list[int]] = {}
    for index, group in enumerate(problem.groups):
        layers.setdefault(group[0].layer, []).append(index)

    def choose(settled: Problem) -> Chosen | None:
        slices = tuple(replace(x, fixed=0.0, limit=(x.limit - x.fixed) / len(layers)) for x in settled.limits)
        chosen: dict[int, Choice] = {}
        for indices in layers.values():
            layer = Problem(groups=tuple(settled.groups[index] for index in indices), limits=slices)
            best = _better(layer, (parts for parts in itertools.product(*layer.groups) if is_within(layer, parts)))
            if best is None:
                return None
            chosen |= dict(zip(indices, best, strict=True))
        whole = tuple(chosen[index] for index in range(len(settled.groups)))
        return whole if is_within(settled, whole) else None

    return _best(problem, choose)


def random_feasible(problem: Problem, count: int, seed: int) -> list[Chosen]:
    """Up to `count` different random choices within the limits.

    Every group's choice and every decision is drawn evenly. While a limit is exceeded, a group is drawn among those
    where some swap removes excess (see `greedy`), and one of those swaps is drawn. Fewer than `count` come back where
    draws keep ending outside the limits or at choices found before.
    """
    generator = random.Random(seed)
    alternatives = list(_settled(problem))
    found: dict[Chosen, None] = {}
    fruitless = 0
    while len(found) < count and fruitless < _FRUITLESS_DRAWS:
        settled = generator.choice(alternatives)
        chosen = _repaired(settled, tuple(generator.choice(group) for group in problem.groups), generator)
        is_new = chosen is not None and chosen not in found
        fruitless = 0 if is_new else fruitless + 1
        if chosen is not None:
            found[chosen] = None
    return list(found)


def max_parameters(problem: Problem, parent: Model, time_limit_s: float = 60.0) -> Chosen | None:
    """The most parameters that are within the limits (Puzzle, arXiv 2411.19146, section 5), to a part in 10,000.

    Args:
        problem: what to choose from.
        parent: gives the dimensions that variants are counted with.
        time_limit_s: seconds for each alternative, after which the most found so far counts.
    """
    counts: dict[Candidate, int] = {}
    for group in problem.groups:
        for candidate in (candidate for choice in group for candidate in choice.candidates):
            counts[candidate] = _parameters(parent, candidate)

    def num_parameters(choice: Choice) -> int:
        return sum(counts[candidate] for candidate in choice.candidates)

    found = [choose_most(settled, num_parameters, time_limit_s) for settled in _settled(problem)]
    chosen = [each for each in found if each is not None]
    return min(chosen, key=lambda each: (-sum(map(num_parameters, each)), score_of(problem, each)), default=None)


def block_influence(problem: Problem, parent: Model, influence: Sequence[float]) -> Chosen | None:
    """Whole layers removed, those of least influence first, until the limits hold (ShortGPT, arXiv 2403.03853).

    All else is the parent's own; where several formats are offered, in whichever one for all layers scores best.

    Args:
        problem: what to choose from.
        parent: what the layers were.
        influence: of each layer; see `ScoreTable.influence`.
    """
    order = sorted(_removable_layers(problem), key=lambda layer: influence[layer])
    children = [
        [_of_variants(problem, _own(parent, weights, order[:num_removed])) for num_removed in range(len(order) + 1)]
        for weights in _formats(problem)
    ]

    def choose(settled: Problem) -> Chosen | None:
        shortest = (
            next((chosen for chosen in fewer if chosen is not None and is_within(settled, chosen)), None)
            for fewer in children
        )
        return _better(settled, (chosen for chosen in shortest if chosen is not None))

    return _best(problem, choose)


def homogeneous(problem: Problem, time_limit_s: float = 60.0) -> Chosen | None:
    """The best choice with one shape for all layers that are left, in depth and width (Minitron, arXiv 2407.14679).

    In width alone where no layer can be removed. `uniform` is another matter: it keeps what a layer's best-scoring
    choice is beside the variant it narrows to.
    """
    answer = solve(replace(merged(problem), most_shapes=1), time_limit_s)
    if not isinstance(answer, Optimal | Feasible):
        return None
    return _of_variants(problem, {(c.layer, c.part): c.variant for b in answer.chosen for c in b.candidates})


def _removable_layers(problem: Problem) -> list[int]:
    """The layers of which nothing need be left."""
    return [group[0].layer for group in merged(problem).groups if any(choice.is_removed for choice in group)]


def _settled(problem: Problem) -> Iterator[Problem]:
    """The problem for each way to take its decisions: there, limits that do not hold allow everything."""
    for taken in itertools.product(*problem.decisions.values()):
        decided = dict(zip(problem.decisions, taken, strict=True))
        limits = tuple(replace(x if holds(x, decided) else _loose(x), when=None) for x in problem.limits)
        yield replace(problem, limits=limits)


def _loose(limit: Limit) -> Limit:
    return replace(limit, limit=-math.inf if limit.is_least else math.inf)


def _best(problem: Problem, choose: Callable[[Problem], Chosen | None]) -> Chosen | None:
    """The best of what a way to choose finds at each alternative."""
    found = [choose(settled) for settled in _settled(problem)]
    return _better(problem, (chosen for chosen in found if chosen is not None))


def _better(problem: Problem, choices: Iterator[Chosen]) -> Chosen | None:
    return min(choices, key=lambda chosen: score_of(problem, chosen), default=None)


def _of_variants(problem: Problem, wanted: Mapping[_Place, Variant]) -> Chosen | None:
    """The choice that has a certain variant in every place; None where it is not offered."""
    chosen = []
    for group in problem.groups:
        fits = (all(wanted[c.layer, c.part] == c.variant for c in choice.candidates) for choice in group)
        choice = next((choice for choice, is_wanted in zip(group, fits, strict=True) if is_wanted), None)
        if choice is None:
            return None
        chosen.append(choice)
    return tuple(chosen)


def _same_everywhere(problem: Problem, part: Part) -> list[dict[_Place, Variant]]:
    """The options of one part: for each what it is in every layer."""
    offered: dict[_Place, set[Variant]] = {}
    own: dict[_Place, Variant] = {}
    variants: dict[Variant, None] = {}
    for group in problem.groups:
        best = min(group, key=lambda choice: choice.score)
        own |= {(c.layer, c.part): c.variant for c in best.candidates if c.part == part}
        for candidate in (c for choice in group for c in choice.candidates if c.part == part):
            offered.setdefault((candidate.layer, part), set()).add(candidate.variant)
            variants[candidate.variant] = None
    options = [{place: variant if variant in offered[place] else own[place] for place in own} for variant in variants]
    return [own, *options]


def _own(parent: Model, weights: Format, removed: Sequence[int]) -> dict[_Place, Variant]:
    """The parent's own variants in a format, some layers removed."""
    variants: dict[_Place, Variant] = {}
    for layer, block in enumerate(parent.layers):
        is_removed = layer in removed
        variants[layer, "mixer"] = NoOp() if is_removed else stored_as(block.mixer, weights)
        variants[layer, "ffn"] = NoOp() if is_removed else stored_as(block.ffn, weights)
    return variants


def _formats(problem: Problem) -> list[Format]:
    """The formats that some candidate is offered in."""
    candidates = (c for group in problem.groups for choice in group for c in choice.candidates)
    return list(dict.fromkeys(c.variant.weights for c in candidates if not isinstance(c.variant, NoOp)))


def _parameters(parent: Model, candidate: Candidate) -> int:
    alone = replace(Block(mixer=NoOp(), ffn=NoOp()), **{candidate.part: candidate.variant})
    return block_parameters(parent, alone)


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
    """What is spent beyond the limits, or short of those from below, each as a share of its limit."""
    return sum(_beyond(limit, cost) for limit, cost in zip(problem.limits, costs, strict=True))


def _beyond(limit: Limit, cost: float) -> float:
    beyond = limit.limit - cost if limit.is_least else cost - limit.limit
    return beyond / (abs(limit.limit) or 1.0) if beyond > 0 else 0.0


def _swapped(chosen: Chosen, index: int, choice: Choice) -> Chosen:
    return (*chosen[:index], choice, *chosen[index + 1 :])
