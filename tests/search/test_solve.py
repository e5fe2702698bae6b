"""The exact choice, against every choice there is."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from blockwright.errors import InputError
from blockwright.search.problem import Choice, Limit, Pair, Problem, is_within, merged, score_of, spent
from blockwright.search.solve import Answer, Feasible, Infeasible, NothingFound, Optimal, solve
from blockwright.spec import Candidate, GatedFFN, NoOp

MakeChoice = Callable[..., Choice]
Draw = Callable[..., Problem]
LeastScore = Callable[[Problem], float]


def _check(problem: Problem, answer: Answer, least: float) -> None:
    if math.isinf(least):
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Optimal)
    scale = max(abs(choice.score) for group in problem.groups for choice in group)
    assert math.isclose(answer.score, least, rel_tol=1e-9, abs_tol=1e-9 * scale)
    assert answer.bound == answer.score == score_of(problem, answer.chosen)
    assert all(choice in group for choice, group in zip(answer.chosen, problem.groups, strict=True))
    assert is_within(problem, answer.chosen, answer.decided)
    assert set(answer.decided) == set(problem.decisions)


@pytest.mark.parametrize("block", range(10))
def test_the_solver_finds_what_trying_every_choice_finds(
    block: int, plain_problem: Draw, least_score: LeastScore
) -> None:
    answers = []
    for seed in range(50 * block, 50 * block + 50):
        problem = plain_problem(seed)
        answers.append(solve(problem))
        _check(problem, answers[-1], least_score(problem))
    assert 5 <= sum(isinstance(answer, Optimal) for answer in answers) <= 49


@pytest.mark.parametrize("block", range(10))
def test_with_pairs_and_rules_it_finds_what_trying_every_choice_finds(
    block: int, block_problem: Draw, least_score: LeastScore
) -> None:
    answers = []
    for seed in range(25 * block, 25 * block + 25):
        problem = block_problem(seed)
        answers.append(solve(problem))
        _check(problem, answers[-1], least_score(problem))
    assert any(isinstance(answer, Optimal) for answer in answers)


@pytest.mark.parametrize("seed", [253, 621, 624, 941, 1235, 1296, 1328, 1329, 1392])
def test_presolve_loses_no_choice(seed: int, block_problem: Draw, least_score: LeastScore) -> None:
    """Found with a step of CP-SAT's presolve that is switched off since: worse choices as optimal, or none at all."""
    problem = block_problem(seed, num_limits=2)
    _check(problem, solve(problem), least_score(problem))


def test_an_alternative_is_not_given_up_for_a_bound_that_leaves_pairs_out(make_choice: MakeChoice) -> None:
    """At the second batch only the two dear choices fit: 2 by themselves, but −3 together."""
    groups = tuple((make_choice(g, 0, 0.0, 0.0, 0.0), make_choice(g, 1, 1.0, 1.0, 1.0)) for g in range(2))
    limits = (
        Limit(text="at most", fixed=0.0, limit=1.0, when=("batch", "1")),
        Limit(text="at least", fixed=0.0, limit=2.0, is_least=True, when=("batch", "2")),
    )
    pair = Pair(first=groups[0][1].candidates[0], second=groups[1][1].candidates[0], score=-5.0)
    answer = solve(Problem(groups=groups, limits=limits, pairs=(pair,)))
    assert isinstance(answer, Optimal)
    assert (answer.score, answer.bound, answer.decided) == (-3.0, -3.0, {"batch": "2"})


@pytest.fixture
def large_problem(make_choice: MakeChoice) -> Draw:
    """Draws scores that fall with cost, more or less, and limits that all press."""

    def draw(seed: int, num_layers: int = 40, num_choices: int = 30, num_limits: int = 3) -> Problem:
        generator = np.random.default_rng(seed)
        size = np.linspace(1, 0, num_choices)
        score = generator.lognormal(0, 0.8, (num_layers, 1)) * (1 - size) ** 1.5
        score = score * generator.lognormal(0, 0.3, (num_layers, num_choices))
        cost = size[None, :, None] * generator.lognormal(0, 0.2, (num_layers, num_choices, num_limits)) + 0.05
        price = generator.uniform(0.1, 1.0, num_limits)
        picked = (score + cost @ price).argmin(axis=1)
        room = cost[np.arange(num_layers), picked].sum(axis=0) * generator.uniform(0.98, 1.02, num_limits)
        return _as_problem(make_choice, score, cost, room)

    return draw


def _as_problem(make_choice: MakeChoice, score_GC: np.ndarray, cost_GCR: np.ndarray, room_R: np.ndarray) -> Problem:
    groups = tuple(
        tuple(make_choice(g, c, float(score), *map(float, costs)) for c, (score, costs) in enumerate(pairs))
        for g, pairs in enumerate(map(zip, score_GC, cost_GCR))
    )
    limits = tuple(Limit(text=f"b{i}", fixed=0.0, limit=float(room)) for i, room in enumerate(room_R))
    return Problem(groups=groups, limits=limits)


def _highs(problem: Problem) -> float:
    """The least score by SciPy's MIP solver, another program altogether."""
    choices = [(g, choice) for g, group in enumerate(problem.groups) for choice in group]
    once = np.zeros((len(problem.groups), len(choices)))
    once[[g for g, _ in choices], range(len(choices))] = 1
    costs = np.array([choice.costs for _, choice in choices]).T
    ends: Any = np.array([limit.end - limit.fixed for limit in problem.limits])
    result = milp(
        np.array([choice.score for _, choice in choices]),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(costs, ub=ends)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0.0, 1.0),
        options={"mip_rel_gap": 0},
    )
    assert result.status == 0
    return float(result.fun)


@pytest.mark.parametrize("seed", range(10))
def test_on_large_problems_it_finds_what_another_solver_finds(seed: int, large_problem: Draw) -> None:
    problem = large_problem(seed, num_limits=1 + seed % 3)
    answer = solve(problem)
    assert isinstance(answer, Optimal)
    assert is_within(problem, answer.chosen)
    assert math.isclose(answer.score, _highs(problem), rel_tol=1e-9)


def test_a_tolerance_is_kept_and_told(large_problem: Draw) -> None:
    problem = large_problem(0)
    best, rough = solve(problem), solve(problem, tolerance=0.05)
    assert isinstance(best, Optimal) and isinstance(rough, Feasible | Optimal)
    assert best.score <= rough.score <= best.score + 0.05
    assert rough.score - 0.05 - 1e-9 <= rough.bound <= best.score + 1e-9


def test_a_time_limit_gives_what_was_found_with_a_bound_that_holds(make_choice: MakeChoice) -> None:
    """Scores that say nothing of costs, and twenty limits: not proven in a minute, but something is found at once."""
    generator = np.random.default_rng(2)
    score, cost = generator.random((100, 5)), generator.random((100, 5, 20))
    problem = _as_problem(make_choice, score, cost, np.full(20, 49.0))
    started = time.monotonic()
    answer = solve(problem, time_limit_s=1.0)
    assert time.monotonic() - started < 10.0
    assert isinstance(answer, Feasible)
    assert is_within(problem, answer.chosen)
    assert answer.bound < answer.score


def test_no_time_at_all_finds_nothing(large_problem: Draw, block_problem: Draw) -> None:
    assert isinstance(solve(large_problem(0), time_limit_s=-1.0), NothingFound)
    assert isinstance(solve(block_problem(8), time_limit_s=-1.0), NothingFound | Optimal | Infeasible)


def test_limits_that_clash_in_whole_choices_only_are_found_to(make_choice: MakeChoice) -> None:
    """Halves of both would fit."""
    group = (make_choice(0, 0, 0.0, 1.0, 0.0), make_choice(0, 1, 0.0, 0.0, 1.0))
    limits = (Limit(text="a", fixed=0.0, limit=0.6), Limit(text="b", fixed=0.0, limit=0.6))
    assert solve(Problem(groups=(group,), limits=limits)) == Infeasible(reachable=(0.0, 0.0))


def test_what_is_reachable_is_told_from_both_sides(make_choice: MakeChoice) -> None:
    groups = ((make_choice(0, 0, 0.0, 1.0, 1.0), make_choice(0, 1, 1.0, 3.0, 3.0)),)
    limits = (Limit(text="most", fixed=1.0, limit=1.5), Limit(text="least", fixed=1.0, limit=9.0, is_least=True))
    assert solve(Problem(groups=groups, limits=limits)) == Infeasible(reachable=(2.0, 4.0))


def test_a_limit_that_is_spent_to_the_last_digit_allows(make_choice: MakeChoice) -> None:
    costs = [0.1, 0.2, 0.3, 0.7]
    groups = tuple((make_choice(g, 0, 0.0, cost), make_choice(g, 1, 1.0, 0.0)) for g, cost in enumerate(costs))
    for order in itertools.permutations(costs):
        problem = Problem(groups=groups, limits=(Limit(text="b", fixed=0.0, limit=sum(order)),))
        answer = solve(problem)
        assert isinstance(answer, Optimal) and answer.score == 0.0


def test_a_decision_takes_the_alternative_that_allows_most(make_choice: MakeChoice) -> None:
    groups = ((make_choice(0, 0, 0.0, 4.0, 1.0), make_choice(0, 1, 1.0, 2.0, 0.5)),)
    limits = (
        Limit(text="memory at batch 8", fixed=0.0, limit=3.0, when=("batch", "8")),
        Limit(text="memory at batch 2", fixed=0.0, limit=3.0, when=("batch", "2")),
    )
    answer = solve(Problem(groups=groups, limits=limits))
    assert isinstance(answer, Optimal)
    assert (answer.score, answer.decided) == (0.0, {"batch": "2"})


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_or_cost_that_is_no_number_is_named(score: float, make_choice: MakeChoice) -> None:
    with pytest.raises(InputError, match=r"layer 3, ffn, layer-03-ffn-ffn-1: score"):
        Problem(groups=((make_choice(3, 0, score),),), limits=())
    with pytest.raises(InputError, match="layer 3, ffn, layer-03-ffn-ffn-1: cost under time@edge"):
        Problem(groups=((make_choice(3, 0, 0.0, score),),), limits=(Limit(text="time@edge", fixed=0, limit=1),))


def test_rules_on_blocks_need_blocks(make_choice: MakeChoice) -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        Problem(groups=((make_choice(0, 0, 0.0),),), limits=(), most_shapes=1)


@pytest.mark.parametrize(("removed", "is_kept"), [("", True), ("1", True), ("12", True), ("01", True), ("02", False)])
def test_removed_layers_stand_side_by_side(removed: str, is_kept: bool) -> None:
    blocks = []
    for layer in range(3):
        mixer, ffn = (NoOp(), NoOp()) if str(layer) in removed else (NoOp(), GatedFFN(width=1))
        candidates = (
            Candidate(layer=layer, part="mixer", variant=mixer),
            Candidate(layer=layer, part="ffn", variant=ffn),
        )
        blocks.append(Choice(candidates=candidates, score=0.0, costs=()))
    problem = Problem(groups=tuple((block,) for block in blocks), limits=(), is_contiguous=True)
    assert is_within(problem, blocks) == is_kept
    assert isinstance(solve(problem), Optimal if is_kept else Infeasible)


def test_merging_keeps_scores_and_costs(block_problem: Draw) -> None:
    problem = block_problem(3)
    apart = Problem(
        groups=(
            (Choice(candidates=(Candidate(layer=0, part="ffn", variant=NoOp()),), score=1.0, costs=(2.0,)),),
            (Choice(candidates=(Candidate(layer=0, part="mixer", variant=NoOp()),), score=0.5, costs=(3.0,)),),
        ),
        limits=(Limit(text="b", fixed=0.0, limit=9.0),),
    )
    block = merged(apart).groups[0][0]
    assert (block.score, block.costs, [c.part for c in block.candidates]) == (1.5, (5.0,), ["mixer", "ffn"])
    assert merged(problem) == problem
    assert spent(merged(apart), (block,)) == [5.0]


def test_a_limit_that_allows_everything_excludes_nothing_and_one_that_is_no_number_is_named() -> None:
    choice = Choice(candidates=(Candidate(layer=0, part="ffn", variant=NoOp()),), score=1.0, costs=(2.0,))
    endless = Problem(groups=((choice,),), limits=(Limit(text="b", fixed=0.0, limit=math.inf),))
    answer = solve(endless)
    assert isinstance(answer, Optimal) and answer.score == 1.0
    for fixed, limit in ((math.nan, 1.0), (math.inf, 1.0), (0.0, math.nan)):
        with pytest.raises(InputError, match="limit memory@here"):
            Problem(groups=((choice,),), limits=(Limit(text="memory@here", fixed=fixed, limit=limit),))


@pytest.mark.parametrize("seed", range(60))
def test_layers_that_cost_alike_are_exchanged_and_nothing_is_lost(
    seed: int, make_choice: MakeChoice, least_score: LeastScore
) -> None:
    """Whole numbers of a unit, the same in every layer, so that most partial choices have a twin; 0.1 is not exact."""
    generator = np.random.default_rng(seed)
    num_rows = 1 + seed % 3
    cost = np.broadcast_to(0.1 * generator.integers(0, 4, (1, 4, num_rows)), (6, 4, num_rows))
    room = 0.1 * generator.integers(6, 14, num_rows) if seed % 2 else cost[:, 1].sum(axis=0)
    score = generator.integers(0, 9, (6, 4)) if seed % 4 < 2 else generator.random((6, 4))
    problem = _as_problem(make_choice, score, cost, room)
    _check(problem, solve(problem), least_score(problem))


def test_one_limit_that_presses_is_soon_proven_however_wide_the_gap(make_choice: MakeChoice) -> None:
    """Costs on a coarse lattice: not proven in a minute before labels with no less room were compared."""
    generator = np.random.default_rng(7)
    i, j = np.divmod(np.arange(54), 9)
    cost = 0.3 * (1 - i / 5) + 1.2 * (1 - j / 8)
    score = generator.lognormal(0, 0.8, (80, 1)) * (1 - cost / 1.5) ** 1.5 * generator.lognormal(0, 0.2, (80, 54))
    room = 0.03 * generator.integers(500, 3000) - 0.001
    problem = _as_problem(make_choice, score, np.tile(cost[:, None], (80, 1, 1)), np.array([room]))
    answer = solve(problem, time_limit_s=20.0)
    assert isinstance(answer, Optimal) and is_within(problem, answer.chosen)


@pytest.mark.parametrize("kind", ["nothing to lose", "one cost is lost"])
def test_flat_scores_are_soon_answered(kind: str, large_problem: Draw) -> None:
    """Layers that cost alike, and scores that say nothing, or what a limit says."""
    problem = large_problem(0)
    alike = tuple(
        tuple(
            replace(choice, score=0.0 if kind == "nothing to lose" else like.costs[0], costs=like.costs)
            for choice, like in zip(group, problem.groups[0], strict=True)
        )
        for group in problem.groups
    )
    means = [float(np.mean([choice.costs[i] for choice in alike[0]])) * len(alike) for i in range(3)]
    limits = tuple(replace(limit, limit=mean) for limit, mean in zip(problem.limits, means, strict=True))
    flat = replace(problem, groups=alike, limits=limits)
    answer = solve(flat, time_limit_s=5.0)
    assert isinstance(answer, Optimal | Feasible) and is_within(flat, answer.chosen)
    assert answer.bound >= answer.score - 1e-2 * max(1.0, answer.score)


def test_a_group_without_choices_is_named(make_choice: MakeChoice) -> None:
    with pytest.raises(InputError, match="group 2 of 2, after that of layer 3"):
        Problem(groups=((make_choice(3, 0, 0.0),), ()), limits=())
    with pytest.raises(InputError, match="group 1 of 1: got nothing"):
        Problem(groups=((),), limits=())
