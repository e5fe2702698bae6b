"""Who stays in a race: those whose scores may still change the plan."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.hw_profiles.profile import Profile
from blockwright.search.budget import parse_budget
from blockwright.search.build import Order, build_problem
from blockwright.search.choose import candidates_of, choose
from blockwright.search.problem import Choice, Problem, score_of
from blockwright.search.racing import undecided
from blockwright.search.scores import ScoreTable
from blockwright.spec import FP32, Candidate, GatedFFN, Model, parse_format

LOAD = Load(batch=1, prompt_tokens=16, new_tokens=16)


@pytest.fixture
def order(make_profile: Callable[..., Profile]) -> Order:
    loads = {"chat": LOAD}
    return Order(
        devices={"here": make_profile([LOAD])},
        backend="onnxruntime",
        formats=(FP32,),
        loads={"chat": (LOAD,)},
        budgets=[parse_budget("parameters <= 70%", loads, ["here"])],
    )


def _widened(table: ScoreTable, share: float) -> ScoreTable:
    """Intervals of so much of each score to both sides."""
    scores = []
    for score in table.scores:
        value = score.estimate.value
        estimate = replace(score.estimate, low=value * (1 - share), high=value * (1 + share))
        scores.append(replace(score, estimate=estimate))
    return replace(table, scores=tuple(scores))


def test_scores_known_exactly_leave_nothing_undecided(make_table: Callable[..., ScoreTable], order: Order) -> None:
    assert undecided(make_table(), order) == set()


def test_the_wider_the_intervals_the_more_is_undecided(make_table: Callable[..., ScoreTable], order: Order) -> None:
    table = make_table()
    sizes = [len(undecided(_widened(table, share), order)) for share in (0.01, 0.1, 0.3, 5.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2] < len(table.scores)


@pytest.mark.parametrize(("half_width", "is_open"), [(0.03, True), (0.019, False)])
def test_a_candidate_is_open_where_the_scores_of_all_that_changes_with_it_leave_it_so(
    half_width: float, is_open: bool, make_table: Callable[..., ScoreTable], order: Order, made_up_parent: Model
) -> None:
    """To halve layer 1 instead is 0.04 worse: more than its own half-width, less than that and layer 0's together."""
    halves = [Candidate(layer=layer, part="ffn", variant=GatedFFN(width=64)) for layer in range(3)]
    own = [Candidate(layer=layer, part="ffn", variant=block.ffn) for layer, block in enumerate(made_up_parent.layers)]
    mixers = [Candidate(layer=n, part="mixer", variant=block.mixer) for n, block in enumerate(made_up_parent.layers)]
    losses = dict(zip(halves, (0.10, 0.14, 0.50), strict=True))
    scores = tuple(
        replace(s, estimate=replace(s.estimate, value=loss, low=loss - half_width, high=loss + half_width))
        if (loss := losses.get(s.candidate)) is not None
        else s
        for s in make_table([*mixers, *own, *halves]).scores
    )
    budgets = [parse_budget("parameters <= 95%", {"chat": LOAD}, ["here"])]
    table, asked = ScoreTable(parent=made_up_parent, scores=scores), replace(order, budgets=budgets)
    assert choose(table, asked).child.layers[0].ffn == GatedFFN(width=64)
    assert half_width < 0.14 - 0.10
    assert undecided(table, asked) == ({*halves[:2], *own[:2]} if is_open else set())


@pytest.mark.parametrize(("seed", "share"), [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.1), (4, 0.5)])
def test_who_is_undecided_is_what_every_plan_tried_out_says(
    seed: int,
    share: float,
    make_table: Callable[..., ScoreTable],
    order: Order,
    every_choice: Callable[[Problem], list[tuple[Choice, ...]]],
) -> None:
    table = _widened(make_table(seed=seed), share)
    widths = {s.candidate: s.estimate.high - s.estimate.value for s in table.scores}
    problem = build_problem(table, order)
    plans = [(score_of(problem, chosen), set(candidates_of(chosen))) for chosen in every_choice(problem)]
    least, best = plans[0]
    wanted: set[Candidate] = set()
    for candidate in set(widths) - best:
        score, plan = next(((score, plan) for score, plan in plans if candidate in plan), (math.inf, best))
        if score - least <= sum(widths[each] for each in plan ^ best):
            wanted |= plan ^ best
    assert undecided(table, order) == wanted


@pytest.mark.parametrize("seed", range(5))
def test_no_score_within_its_interval_changes_the_plan_where_it_is_decided(
    seed: int, make_table: Callable[..., ScoreTable], order: Order
) -> None:
    """Each decided candidate alone at the end of its interval that would help it most."""
    table = _widened(make_table(seed=seed), 0.15)
    plan, open_ones = choose(table, order), undecided(table, order)
    for index, score in enumerate(table.scores):
        if score.candidate in open_ones:
            continue
        is_held = getattr(plan.child.layers[score.candidate.layer], score.candidate.part) == score.candidate.variant
        value = score.estimate.high if is_held else score.estimate.low
        moved = replace(score, estimate=replace(score.estimate, value=value))
        scores = (*table.scores[:index], moved, *table.scores[index + 1 :])
        assert choose(replace(table, scores=scores), order).child == plan.child


def test_candidates_scored_in_fp32_race_for_an_engine_in_another_format(
    make_table: Callable[..., ScoreTable], make_profile: Callable[..., Profile], order: Order
) -> None:
    int4 = parse_format("int4")
    other = replace(order, formats=(int4,), devices={"here": make_profile([LOAD], formats=[int4])})
    table = _widened(make_table(), 0.5)
    found = undecided(table, other)
    assert found and found <= {score.candidate for score in table.scores}


def test_where_there_is_no_plan_all_stay(make_table: Callable[..., ScoreTable], order: Order) -> None:
    table = make_table()
    none = replace(order, budgets=[parse_budget("parameters <= 1K", {"chat": LOAD}, ["here"])])
    assert undecided(table, none) == {score.candidate for score in table.scores}
