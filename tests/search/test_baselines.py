"""The simpler ways to choose: within the budgets, what they say they are, and never better than the solver."""

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockwright.count import parameters
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
from blockwright.search.problem import Choice, Limit, Pair, Problem, is_within, merged, score_of
from blockwright.search.solve import Infeasible, Optimal, solve
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
    Rope,
    parse_format,
    stored_as,
    with_candidate,
)

_MIXERS: list[Mixer] = [Attention(num_kv_heads=4), Attention(num_kv_heads=2), LinearMixer(), NoOp()]
_FFNS: list[FFN] = [GatedFFN(width=64), GatedFFN(width=32), LinearFFN(), NoOp()]
EveryChoice = Callable[[Problem], list[Chosen]]
_INT4 = parse_format("int4")
_INFLUENCE = (0.5, 0.02, 0.3, 0.01, 0.1)


def _parent(num_layers: int = 5) -> Model:
    return Model(
        family="llama",
        vocab_size=96,
        hidden_size=16,
        num_heads=4,
        head_dim=4,
        max_positions=64,
        norm_eps=1e-5,
        rope=Rope(theta=1e4),
        activation="silu",
        has_tied_embeddings=True,
        has_qkv_bias=False,
        has_output_bias=False,
        has_ffn_bias=False,
        has_qk_norm=False,
        layers=(Block(mixer=_MIXERS[0], ffn=_FFNS[0]),) * num_layers,
    )


def _problem(seed: int, num_layers: int = 5, share: float = 0.5, num_limits: int = 2) -> Problem:
    """Own parts score 0; every budget allows a share of what the own parts cost."""
    generator = random.Random(seed)
    groups = []
    for layer in range(num_layers):
        ffns = [Candidate(layer=layer, part="ffn", variant=variant) for variant in _FFNS]
        mixers = [Candidate(layer=layer, part="mixer", variant=variant) for variant in _MIXERS]
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


def _alike(problem: Problem) -> Problem:
    """The same variants cost the same in every layer."""
    costs = {choice.shape: choice.costs for group in problem.groups[:2] for choice in group}
    groups = tuple(tuple(replace(choice, costs=costs[choice.shape]) for choice in group) for group in problem.groups)
    own = [sum(group[0].costs[i] for group in groups) for i in range(len(problem.limits))]
    limits = tuple(replace(x, limit=0.5 + 0.55 * cost) for x, cost in zip(problem.limits, own, strict=True))
    return Problem(groups=groups, limits=limits)


def _ranged(problem: Problem) -> Problem:
    """With the first limit a range: its lower end is at 90 % of its upper one."""
    first = problem.limits[0]
    least = Limit(text="least", fixed=first.fixed, limit=0.9 * first.limit, is_least=True)
    groups = tuple(tuple(replace(c, costs=(*c.costs, c.costs[0])) for c in group) for group in problem.groups)
    return replace(problem, groups=groups, limits=(*problem.limits, least))


def _with_decision(problem: Problem) -> Problem:
    """With either one limit or the other to keep, the second after it is made tighter."""
    first, second = problem.limits
    second = replace(second, limit=0.8 * second.limit, when=("batch", "4"))
    return replace(problem, limits=(replace(first, when=("batch", "1")), second))


def _paired(problem: Problem) -> Problem:
    """Where two neighbours are both nothing, more is lost."""
    nothing = [group[-1].candidates[0] for group in problem.groups]
    pairs = tuple(Pair(first=a, second=b, score=0.7) for a, b in itertools.pairwise(nothing))
    return replace(problem, pairs=pairs)


_KINDS: dict[str, Callable[[Problem], Problem]] = {
    "plain": lambda problem: problem,
    "alike": _alike,
    "ranged": _ranged,
    "decided": _with_decision,
    "paired": _paired,
    "whole blocks": merged,
    "two shapes": lambda problem: replace(merged(problem), most_shapes=2),
    "contiguous": lambda problem: replace(merged(problem), is_contiguous=True),
}


def _found(problem: Problem) -> list[Chosen]:
    parent = _parent(len({group[0].layer for group in problem.groups}))
    found = [
        uniform(problem),
        greedy(problem),
        equal_per_layer(problem),
        max_parameters(problem, parent),
        block_influence(problem, parent, _INFLUENCE),
        homogeneous(problem),
        *random_feasible(problem, 10, seed=0),
    ]
    return [chosen for chosen in found if chosen is not None]


def _is_within_somewhere(problem: Problem, chosen: Chosen) -> bool:
    taken = itertools.product(*problem.decisions.values())
    return any(is_within(problem, chosen, dict(zip(problem.decisions, each, strict=True))) for each in taken)


def _num_parameters(chosen: Chosen) -> int:
    return parameters(_parent()) + sum(_difference(candidate) for choice in chosen for candidate in choice.candidates)


@functools.cache
def _difference(candidate: Candidate) -> int:
    return parameters(with_candidate(_parent(), candidate)) - parameters(_parent())


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_every_baseline_stays_within_the_budgets_and_never_beats_the_solver(seed: int, kind: str) -> None:
    problem = _KINDS[kind](_problem(seed, share=0.35 + 0.05 * seed))
    best = solve(problem)
    assert isinstance(best, Optimal)
    found = _found(problem)
    assert len(found) >= 3
    for chosen in found:
        assert len(chosen) == len(problem.groups)
        assert all(choice in group for choice, group in zip(chosen, problem.groups, strict=True))
        assert _is_within_somewhere(problem, chosen)
        assert score_of(problem, chosen) >= best.score - 1e-9


@pytest.mark.parametrize("kind", ["plain", "decided", "two shapes"])
def test_no_baseline_finds_a_choice_where_there_is_none(kind: str) -> None:
    problem = _KINDS[kind](_problem(0))
    limits = tuple(replace(limit, fixed=2.0, limit=1.0) for limit in problem.limits)
    out_of_reach = replace(problem, limits=limits)
    assert isinstance(solve(out_of_reach), Infeasible)
    assert _found(out_of_reach) == []


@pytest.mark.parametrize("kind", ["plain", "decided", "paired", "whole blocks", "two shapes", "contiguous"])
def test_every_baseline_but_the_random_one_keeps_the_parent_when_budgets_are_loose(kind: str) -> None:
    problem = _KINDS[kind](_problem(1, share=10.0))
    own = tuple(group[0] for group in problem.groups)
    assert _found(problem)[:6] == [own] * 6


@pytest.mark.parametrize("kind", ["plain", "whole blocks"])
@pytest.mark.parametrize("seed", range(8))
def test_uniform_takes_the_best_of_all_combinations_of_one_mixer_and_one_ffn(seed: int, kind: str) -> None:
    problem = _KINDS[kind](_problem(seed, share=0.6))
    allowed = []
    for wanted in itertools.product(_MIXERS, _FFNS):
        of_part = {"mixer": wanted[:1], "ffn": wanted[1:]}
        shapes = wanted if kind == "whole blocks" else None
        chosen = tuple(c for g in problem.groups for c in g if c.shape == (shapes or of_part[c.candidates[0].part]))
        if is_within(problem, chosen):
            allowed.append(score_of(problem, chosen))
    chosen = uniform(problem)
    assert chosen is not None
    assert score_of(problem, chosen) == pytest.approx(min(allowed))


def test_uniform_leaves_a_layer_that_offers_nothing_else_as_it_is() -> None:
    problem = _problem(2, share=0.7)
    kept = replace(problem, groups=(problem.groups[0][:1], problem.groups[1][:1], *problem.groups[2:]))
    chosen = uniform(kept)
    assert chosen is not None and chosen != tuple(group[0] for group in kept.groups)
    for part in (0, 1):
        assert len({choice.shape for choice in chosen[2 + part :: 2]}) == 1


def test_greedy_takes_the_cheapest_sacrifice_first() -> None:
    groups = tuple(
        (
            Choice(candidates=(Candidate(layer=g, part="ffn", variant=GatedFFN(width=64)),), score=0.0, costs=(8.0,)),
            Choice(candidates=(Candidate(layer=g, part="ffn", variant=GatedFFN(width=32)),), score=loss, costs=(cost,)),
        )
        for g, (loss, cost) in enumerate([(1.0, 4.0), (4.0, 4.0), (3.0, 2.0)])
    )
    chosen = greedy(Problem(groups=groups, limits=(Limit(text="a", fixed=0.0, limit=18.0),)))
    assert chosen is not None
    assert [choice.score for choice in chosen] == [1.0, 0.0, 3.0]  # the first swap of layer 0 turns out not needed


def test_equal_slices_are_chosen_within_layer_by_layer() -> None:
    problem = _problem(0, num_layers=4, share=0.7, num_limits=1)
    chosen = equal_per_layer(problem)
    assert chosen is not None
    room = (problem.limits[0].limit - problem.limits[0].fixed) / 4
    for layer in range(4):
        ffns, mixers = problem.groups[2 * layer], problem.groups[2 * layer + 1]
        best = min(f.score + m.score for f in ffns for m in mixers if f.costs[0] + m.costs[0] <= room)
        own = [choice for choice in chosen if choice.layer == layer]
        assert sum(choice.score for choice in own) == pytest.approx(best)


def test_random_choices_differ_and_come_again_from_their_seed() -> None:
    problem = _problem(3)
    drawn = random_feasible(problem, 25, seed=7)
    assert len(set(drawn)) == 25
    assert drawn == random_feasible(problem, 25, seed=7)
    assert drawn != random_feasible(problem, 25, seed=8)


def test_random_choices_are_as_many_as_there_are_where_few_are_within_the_budgets() -> None:
    groups = tuple(
        (
            Choice(candidates=(Candidate(layer=g, part="ffn", variant=GatedFFN(width=64)),), score=0.0, costs=(2.0,)),
            Choice(candidates=(Candidate(layer=g, part="ffn", variant=NoOp()),), score=1.0, costs=(1.0,)),
        )
        for g in range(3)
    )
    problem = Problem(groups=groups, limits=(Limit(text="a", fixed=0.0, limit=4.0),))
    assert len(random_feasible(problem, 10, seed=0)) == 4


@pytest.mark.parametrize("kind", ["plain", "alike", "decided"])
@pytest.mark.parametrize("seed", range(4))
def test_the_most_parameters_are_those_of_tryingevery_choice(seed: int, kind: str, every_choice: EveryChoice) -> None:
    problem = _KINDS[kind](_problem(seed, num_layers=3, share=0.4 + 0.1 * seed))
    most = max(map(_num_parameters, every_choice(problem)), default=None)
    chosen = max_parameters(problem, _parent())
    assert (chosen is None) == (most is None)
    if chosen is not None and most is not None:
        assert _is_within_somewhere(problem, chosen)
        assert most * (1 - 1e-4) <= _num_parameters(chosen) <= most


def test_layers_of_least_influence_are_removed_until_the_budgets_hold() -> None:
    problem = _alike(_problem(0, num_limits=1))
    for share, removed in ((1.0, []), (0.8, [3]), (0.61, [1, 3]), (0.59, [1, 3, 4]), (0.01, [0, 1, 2, 3, 4])):
        own = sum(group[0].costs[0] for group in problem.groups)
        limited = replace(problem, limits=(Limit(text="a", fixed=0.0, limit=share * own),))
        chosen = block_influence(limited, _parent(), _INFLUENCE)
        assert chosen is not None
        assert [layer for layer in range(5) if all(c.is_removed for c in chosen if c.layer == layer)] == removed
        assert all(c in (group[0], group[-1]) for c, group in zip(chosen, limited.groups, strict=True))


def test_a_layer_that_must_stay_is_passed_over_whatever_its_influence() -> None:
    problem = _alike(_problem(0, num_limits=1))
    groups = (*problem.groups[:6], problem.groups[6][:-1], *problem.groups[7:])  # the ffn of layer 3 stays
    kept = replace(problem, groups=groups)
    chosen = block_influence(kept, _parent(), _INFLUENCE)
    assert chosen is not None
    assert {c.layer for c in chosen if c.is_removed} == {1, 4, 2}


def test_layers_are_removed_in_the_format_that_loses_least() -> None:
    problem = _problem(0, num_limits=1)
    groups = tuple(
        (*group, *(_in_int4(choice) for choice in group if not choice.is_removed)) for group in problem.groups
    )
    cheap = replace(problem, groups=groups)
    chosen = block_influence(cheap, _parent(), _INFLUENCE)
    assert chosen is not None
    assert {c.candidates[0].variant for c in chosen} == {stored_as(v, _INT4) for v in (_MIXERS[0], _FFNS[0])}


def _in_int4(choice: Choice) -> Choice:
    (candidate,) = choice.candidates
    stored = replace(candidate, variant=stored_as(candidate.variant, _INT4))
    return replace(choice, candidates=(stored,), score=choice.score + 0.01, costs=tuple(c / 4 for c in choice.costs))


def test_without_layers_to_remove_there_is_no_influence_to_go_by() -> None:
    problem = _problem(0)
    whole = replace(problem, groups=tuple(group[:-1] for group in problem.groups))
    assert block_influence(whole, _parent(), _INFLUENCE) is None  # of a budget that the parent itself exceeds


@pytest.mark.parametrize("seed", range(6))
def test_without_layers_to_remove_homogeneous_is_as_wide_in_every_layer(seed: int) -> None:
    """All layers are kept; layer by layer there is better."""
    problem = _problem(seed, share=0.8)
    kept = replace(problem, groups=tuple(group[:-1] for group in problem.groups))
    alike = [
        tuple(next(c for c in group if c.candidates[0].variant in wanted) for group in kept.groups)
        for wanted in itertools.product(_MIXERS[:-1], _FFNS[:-1])
    ]
    within = [score_of(kept, chosen) for chosen in alike if is_within(kept, chosen)]
    chosen, best = homogeneous(kept), solve(kept)
    assert chosen is not None and isinstance(best, Optimal)
    assert len({choice.shape for choice in chosen}) == 2 and not any(choice.is_removed for choice in chosen)
    assert best.score < score_of(kept, chosen) == pytest.approx(min(within))


@pytest.mark.parametrize("kind", ["plain", "ranged", "decided", "paired", "whole blocks", "contiguous"])
@pytest.mark.parametrize("seed", range(4))
def test_homogeneous_is_the_best_with_one_shape_of_all_that_is_left(
    seed: int, kind: str, every_choice: EveryChoice
) -> None:
    problem = _KINDS[kind](_problem(seed, num_layers=3, share=0.5))
    blocks = merged(problem)
    alike = [
        score_of(problem, chosen)
        for chosen in every_choice(blocks)
        if len({choice.shape for choice in chosen if not choice.is_removed}) <= 1
    ]
    chosen = homogeneous(problem)
    assert (chosen is None) == (not alike)
    if chosen is not None:
        assert score_of(problem, chosen) == pytest.approx(min(alike))
