"""The simpler ways to choose: within the budgets, what they say they are, and never better than the solver."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from baseline_problems import (
    FFNS,
    INFLUENCE,
    INT4,
    KINDS,
    MIXERS,
    drawn_problem,
    found_by,
    is_within_somewhere,
    made_alike,
    stored_parent,
)
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
from blockwright.search.problem import Choice, Limit, Problem, is_within, merged, score_of
from blockwright.search.solve import Infeasible, Optimal, solve
from blockwright.spec import (
    Candidate,
    GatedFFN,
    NoOp,
    stored_as,
    with_candidate,
)

EveryChoice = Callable[[Problem], list[Chosen]]


def num_parameters(chosen: Chosen) -> int:
    return parameters(stored_parent()) + sum(
        difference(candidate) for choice in chosen for candidate in choice.candidates
    )


@functools.cache
def difference(candidate: Candidate) -> int:
    return parameters(with_candidate(stored_parent(), candidate)) - parameters(stored_parent())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_every_baseline_stays_within_the_budgets_and_never_beats_the_solver(seed: int, kind: str) -> None:
    problem = KINDS[kind](drawn_problem(seed, share=0.35 + 0.05 * seed))
    best = solve(problem)
    assert isinstance(best, Optimal)
    found = found_by(problem)
    assert len(found) >= 3
    for chosen in found:
        assert len(chosen) == len(problem.groups)
        assert all(choice in group for choice, group in zip(chosen, problem.groups, strict=True))
        assert is_within_somewhere(problem, chosen)
        assert score_of(problem, chosen) >= best.score - 1e-9


@pytest.mark.parametrize("kind", ["plain", "decided", "two shapes"])
def test_no_baseline_finds_a_choice_where_there_is_none(kind: str) -> None:
    problem = KINDS[kind](drawn_problem(0))
    limits = tuple(replace(limit, fixed=2.0, limit=1.0) for limit in problem.limits)
    out_of_reach = replace(problem, limits=limits)
    assert isinstance(solve(out_of_reach), Infeasible)
    assert found_by(out_of_reach) == []


@pytest.mark.parametrize("kind", ["plain", "decided", "paired", "whole blocks", "two shapes", "contiguous"])
def test_every_baseline_but_the_random_one_keeps_the_parent_when_budgets_are_loose(kind: str) -> None:
    problem = KINDS[kind](drawn_problem(1, share=10.0))
    own = tuple(group[0] for group in problem.groups)
    assert found_by(problem)[:6] == [own] * 6


@pytest.mark.parametrize("kind", ["plain", "whole blocks"])
@pytest.mark.parametrize("seed", range(8))
def test_uniform_takes_the_best_of_all_combinations_of_one_mixer_and_one_ffn(seed: int, kind: str) -> None:
    problem = KINDS[kind](drawn_problem(seed, share=0.6))
    allowed = []
    for wanted in itertools.product(MIXERS, FFNS):
        of_part = {"mixer": wanted[:1], "ffn": wanted[1:]}
        shapes = wanted if kind == "whole blocks" else None
        chosen = tuple(c for g in problem.groups for c in g if c.shape == (shapes or of_part[c.candidates[0].part]))
        if is_within(problem, chosen):
            allowed.append(score_of(problem, chosen))
    chosen = uniform(problem)
    assert chosen is not None
    assert score_of(problem, chosen) == pytest.approx(min(allowed))


def test_uniform_leaves_a_layer_that_offers_nothing_else_as_it_is() -> None:
    problem = drawn_problem(2, share=0.7)
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
    problem = drawn_problem(0, num_layers=4, share=0.7, num_limits=1)
    chosen = equal_per_layer(problem)
    assert chosen is not None
    room = (problem.limits[0].limit - problem.limits[0].fixed) / 4
    for layer in range(4):
        ffns, mixers = problem.groups[2 * layer], problem.groups[2 * layer + 1]
        best = min(f.score + m.score for f in ffns for m in mixers if f.costs[0] + m.costs[0] <= room)
        own = [choice for choice in chosen if choice.layer == layer]
        assert sum(choice.score for choice in own) == pytest.approx(best)


def test_random_choices_differ_and_come_again_from_their_seed() -> None:
    problem = drawn_problem(3)
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
    problem = KINDS[kind](drawn_problem(seed, num_layers=3, share=0.4 + 0.1 * seed))
    most = max(map(num_parameters, every_choice(problem)), default=None)
    chosen = max_parameters(problem, stored_parent())
    assert (chosen is None) == (most is None)
    if chosen is not None and most is not None:
        assert is_within_somewhere(problem, chosen)
        assert most * (1 - 1e-4) <= num_parameters(chosen) <= most


def test_layers_of_least_influence_are_removed_until_the_budgets_hold() -> None:
    problem = made_alike(drawn_problem(0, num_limits=1))
    for share, removed in ((1.0, []), (0.8, [3]), (0.61, [1, 3]), (0.59, [1, 3, 4]), (0.01, [0, 1, 2, 3, 4])):
        own = sum(group[0].costs[0] for group in problem.groups)
        limited = replace(problem, limits=(Limit(text="a", fixed=0.0, limit=share * own),))
        chosen = block_influence(limited, stored_parent(), INFLUENCE)
        assert chosen is not None
        assert [layer for layer in range(5) if all(c.is_removed for c in chosen if c.layer == layer)] == removed
        assert all(c in (group[0], group[-1]) for c, group in zip(chosen, limited.groups, strict=True))


def test_a_layer_that_must_stay_is_passed_over_whatever_its_influence() -> None:
    problem = made_alike(drawn_problem(0, num_limits=1))
    groups = (*problem.groups[:6], problem.groups[6][:-1], *problem.groups[7:])  # the ffn of layer 3 stays
    kept = replace(problem, groups=groups)
    chosen = block_influence(kept, stored_parent(), INFLUENCE)
    assert chosen is not None
    assert {c.layer for c in chosen if c.is_removed} == {1, 4, 2}


def test_layers_are_removed_in_the_format_that_loses_least() -> None:
    problem = drawn_problem(0, num_limits=1)
    groups = tuple(
        (*group, *(_in_int4(choice) for choice in group if not choice.is_removed)) for group in problem.groups
    )
    cheap = replace(problem, groups=groups)
    chosen = block_influence(cheap, stored_parent(), INFLUENCE)
    assert chosen is not None
    assert {c.candidates[0].variant for c in chosen} == {stored_as(v, INT4) for v in (MIXERS[0], FFNS[0])}


def _in_int4(choice: Choice) -> Choice:
    (candidate,) = choice.candidates
    stored = replace(candidate, variant=stored_as(candidate.variant, INT4))
    return replace(choice, candidates=(stored,), score=choice.score + 0.01, costs=tuple(c / 4 for c in choice.costs))


def test_without_layers_to_remove_there_is_no_influence_to_go_by() -> None:
    problem = drawn_problem(0)
    whole = replace(problem, groups=tuple(group[:-1] for group in problem.groups))
    assert block_influence(whole, stored_parent(), INFLUENCE) is None  # of a budget that the parent itself exceeds


@pytest.mark.parametrize("seed", range(6))
def test_without_layers_to_remove_homogeneous_is_as_wide_in_every_layer(seed: int) -> None:
    """All layers are kept; layer by layer there is better."""
    problem = drawn_problem(seed, share=0.8)
    kept = replace(problem, groups=tuple(group[:-1] for group in problem.groups))
    alike = [
        tuple(next(c for c in group if c.candidates[0].variant in wanted) for group in kept.groups)
        for wanted in itertools.product(MIXERS[:-1], FFNS[:-1])
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
    problem = KINDS[kind](drawn_problem(seed, num_layers=3, share=0.5))
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
