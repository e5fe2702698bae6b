"""The simpler ways to choose: within the budgets, and never better than the solver."""

import random

import pytest

from blockwright.search.baselines import equal_per_layer, greedy, random_feasible, uniform
from blockwright.search.solve import Choice, Infeasible, Limit, Optimal, Problem, is_within, solve, spent
from blockwright.spec import FFN, Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Mixer, NoOp

_MIXERS: list[Mixer] = [Attention(num_kv_heads=4), Attention(num_kv_heads=2), LinearMixer(), NoOp()]
_FFNS: list[FFN] = [GatedFFN(width=64), GatedFFN(width=32), LinearFFN(), NoOp()]


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
                        candidate=candidate,
                        score=index * generator.random(),
                        costs=tuple((3 - index) * (0.5 + generator.random()) for _ in range(num_limits)),
                    )
                    for index, candidate in enumerate(candidates)
                )
            )
    own = [sum(group[0].costs[i] for group in groups) for i in range(num_limits)]
    limits = tuple(Limit(text=f"b{i}", fixed=0.5, limit=0.5 + share * cost) for i, cost in enumerate(own))
    return Problem(groups=tuple(groups), limits=limits)


def _found(problem: Problem) -> list[tuple[Choice, ...]]:
    found = [uniform(problem), greedy(problem), equal_per_layer(problem), *random_feasible(problem, 10, seed=0)]
    return [chosen for chosen in found if chosen is not None]


@pytest.mark.parametrize("seed", range(12))
def test_every_baseline_stays_within_the_budgets_and_never_beats_the_solver(seed: int) -> None:
    problem = _problem(seed, share=0.3 + 0.05 * seed)
    best = solve(problem)
    assert isinstance(best, Optimal)
    found = _found(problem)
    assert len(found) >= 12
    for chosen in found:
        assert len(chosen) == len(problem.groups)
        assert all(choice in group for choice, group in zip(chosen, problem.groups, strict=True))
        assert is_within(problem, chosen)
        assert sum(choice.score for choice in chosen) >= best.score - 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_no_baseline_finds_a_choice_where_there_is_none(seed: int) -> None:
    problem = _problem(seed)
    out_of_reach = Problem(groups=problem.groups, limits=(Limit(text="b", fixed=2.0, limit=1.0), *problem.limits[1:]))
    assert isinstance(solve(out_of_reach), Infeasible)
    assert _found(out_of_reach) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_baseline_but_the_random_one_keeps_the_parent_when_budgets_are_loose(seed: int) -> None:
    problem = _problem(seed, share=10.0)
    own = tuple(group[0] for group in problem.groups)
    assert uniform(problem) == greedy(problem) == equal_per_layer(problem) == own


@pytest.mark.parametrize("seed", range(8))
def test_uniform_takes_the_best_of_all_combinations_of_one_mixer_and_one_ffn(seed: int) -> None:
    problem = _problem(seed, share=0.6)
    allowed = []
    for mixer in _MIXERS:
        for ffn in _FFNS:
            wanted = {"mixer": mixer, "ffn": ffn}
            chosen = tuple(c for g in problem.groups for c in g if c.candidate.variant == wanted[c.candidate.part])
            if all(cost <= limit.limit for cost, limit in zip(spent(problem, chosen), problem.limits, strict=True)):
                allowed.append(sum(choice.score for choice in chosen))
    chosen = uniform(problem)
    assert chosen is not None
    assert sum(choice.score for choice in chosen) == pytest.approx(min(allowed))


def test_greedy_takes_the_cheapest_sacrifice_first() -> None:
    groups = tuple(
        (
            Choice(candidate=Candidate(layer=g, part="ffn", variant=GatedFFN(width=64)), score=0.0, costs=(8.0,)),
            Choice(candidate=Candidate(layer=g, part="ffn", variant=GatedFFN(width=32)), score=loss, costs=(cost,)),
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
        own = [choice for choice in chosen if choice.candidate.layer == layer]
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
            Choice(candidate=Candidate(layer=g, part="ffn", variant=GatedFFN(width=64)), score=0.0, costs=(2.0,)),
            Choice(candidate=Candidate(layer=g, part="ffn", variant=NoOp()), score=1.0, costs=(1.0,)),
        )
        for g in range(3)
    )
    problem = Problem(groups=groups, limits=(Limit(text="a", fixed=0.0, limit=4.0),))
    assert len(random_feasible(problem, 10, seed=0)) == 4
