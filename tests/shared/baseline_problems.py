"""Small problems of every kind for simpler ways to choose, and what those need."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

from blockwright.llama import llama
from blockwright.search.baselines import (
    Chosen,
    block_influence,
    equal_per_layer,
    greedy,
    homogeneous,
    max_parameters,
    random_feasible,
    uniform,
)
from blockwright.search.problem import Choice, Limit, Pair, Problem, is_within, merged
from blockwright.spec import (
    FFN,
    Attention,
    Block,
    Candidate,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    parse_format,
)

MIXERS: list[Mixer] = [Attention(num_kv_heads=4), Attention(num_kv_heads=2), LinearMixer(), NoOp()]
FFNS: list[FFN] = [GatedFFN(width=64), GatedFFN(width=32), LinearFFN(), NoOp()]
INT4 = parse_format("int4")
INFLUENCE = (0.5, 0.02, 0.3, 0.01, 0.1)


def stored_parent(num_layers: int = 5) -> Model:
    return llama(
        (Block(mixer=MIXERS[0], ffn=FFNS[0]),) * num_layers,
        hidden_size=16,
        num_heads=4,
        head_dim=4,
        vocab_size=96,
        max_positions=64,
    )


def drawn_problem(seed: int, num_layers: int = 5, share: float = 0.5, num_limits: int = 2) -> Problem:
    """Own parts score 0; every budget allows a share of what the own parts cost."""
    generator = random.Random(seed)
    groups = []
    for layer in range(num_layers):
        ffns = [Candidate(layer=layer, part="ffn", variant=variant) for variant in FFNS]
        mixers = [Candidate(layer=layer, part="mixer", variant=variant) for variant in MIXERS]
        for candidates in (ffns, mixers):
            groups.append(
                tuple(
                    Choice(
                        candidates=(candidate,),
                        score=index * generator.random(),
                        costs=tuple((3 - index) * (0.5 + generator.random()) for _ in range(num_limits)),
                    )
                    for index, candidate in enumerate(candidates)
                )
            )
    own = [sum(group[0].costs[i] for group in groups) for i in range(num_limits)]
    limits = tuple(Limit(text=f"b{i}", fixed=0.5, limit=0.5 + share * cost) for i, cost in enumerate(own))
    return Problem(groups=tuple(groups), limits=limits)


def made_alike(problem: Problem) -> Problem:
    """The same variants cost the same in every layer."""
    costs = {choice.shape: choice.costs for group in problem.groups[:2] for choice in group}
    groups = tuple(tuple(replace(choice, costs=costs[choice.shape]) for choice in group) for group in problem.groups)
    own = [sum(group[0].costs[i] for group in groups) for i in range(len(problem.limits))]
    limits = tuple(replace(x, limit=0.5 + 0.55 * cost) for x, cost in zip(problem.limits, own, strict=True))
    return Problem(groups=groups, limits=limits)


def ranged(problem: Problem) -> Problem:
    """With the first limit a range: its lower end is at 90 % of its upper one."""
    first = problem.limits[0]
    least = Limit(text="least", fixed=first.fixed, limit=0.9 * first.limit, is_least=True)
    groups = tuple(tuple(replace(c, costs=(*c.costs, c.costs[0])) for c in group) for group in problem.groups)
    return replace(problem, groups=groups, limits=(*problem.limits, least))


def with_decision(problem: Problem) -> Problem:
    """With either one limit or the other to keep, the second after it is made tighter."""
    first, second = problem.limits
    second = replace(second, limit=0.8 * second.limit, when=("batch", "4"))
    return replace(problem, limits=(replace(first, when=("batch", "1")), second))


def paired(problem: Problem) -> Problem:
    """Where two neighbours are both nothing, more is lost."""
    nothing = [group[-1].candidates[0] for group in problem.groups]
    pairs = tuple(Pair(first=a, second=b, score=0.7) for a, b in itertools.pairwise(nothing))
    return replace(problem, pairs=pairs)


KINDS: dict[str, Callable[[Problem], Problem]] = {
    "plain": lambda problem: problem,
    "alike": made_alike,
    "ranged": ranged,
    "decided": with_decision,
    "paired": paired,
    "whole blocks": merged,
    "two shapes": lambda problem: replace(merged(problem), most_shapes=2),
    "contiguous": lambda problem: replace(merged(problem), is_contiguous=True),
}


def found_by(problem: Problem) -> list[Chosen]:
    parent = stored_parent(len({group[0].layer for group in problem.groups}))
    found = [
        uniform(problem),
        greedy(problem),
        equal_per_layer(problem),
        max_parameters(problem, parent),
        block_influence(problem, parent, INFLUENCE),
        homogeneous(problem),
        *random_feasible(problem, 10, seed=0),
    ]
    return [chosen for chosen in found if chosen is not None]


def is_within_somewhere(problem: Problem, chosen: Chosen) -> bool:
    taken = itertools.product(*problem.decisions.values())
    return any(is_within(problem, chosen, dict(zip(problem.decisions, each, strict=True))) for each in taken)
