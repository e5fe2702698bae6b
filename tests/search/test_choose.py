"""From scores, a profile and budgets to a plan, against every child there is."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.profile import Ceilings, MemoryRow, Point, Profile, TimeRow, WholeRow
from blockwright.profiler.cost_model import decode_points, exact_memory, part_costs, predict, prefill_points
from blockwright.profiler.measure import layer_names
from blockwright.search.budget import parse_budget
from blockwright.search.choose import Order, build_problem, child_of, choose, frontier
from blockwright.search.scores import Score, ScoreTable
from blockwright.search.solve import Choice, Problem, spent
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Candidate,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    Variant,
    variant_name,
)
from blockwright.statistics import Estimate

PARENT = Model(
    family="llama",
    vocab_size=96,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=256,
    norm_eps=1e-5,
    rope=Rope(theta=1e4),
    activation="silu",
    has_tied_embeddings=True,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=128)),) * 3,
)
LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
OFFERED = candidates(PARENT, SpaceSettings(kv_head_shares=(0.5,), ffn_width_shares=(0.5,)))


def _time_of(variant: Variant, point: Point) -> float:
    match variant:
        case Attention(num_kv_heads=num_kv_heads):
            return 1e-6 * (10 + 5 * num_kv_heads) * point.new_tokens
        case GatedFFN(width=width):
            return 1e-6 * 0.3 * width * point.new_tokens
        case LinearMixer() | LinearFFN():
            return 2e-6 * point.new_tokens
        case NoOp():
            return 0.0


def _time_row(candidate: Candidate, point: Point) -> TimeRow:
    return TimeRow(
        backend="onnxruntime",
        format="fp32",
        part=candidate.part,
        variant=variant_name(candidate.variant),
        point=point,
        time_s=_time_of(candidate.variant, point),
        low_s=0.0,
        high_s=1.0,
        num_samples=9,
        num_rejected=0,
        origin="measured",
    )


def _whole_row(model: Model, point: Point, is_anchor: bool) -> WholeRow:
    parts = sum(_time_of(part, point) for block in model.layers for part in (block.mixer, block.ffn))
    return WholeRow(
        backend="onnxruntime",
        format="fp32",
        layers=layer_names(model),
        is_anchor=is_anchor,
        point=point,
        time_s=20e-6 + parts,
        low_s=0.0,
        high_s=1.0,
        num_samples=9,
        num_rejected=0,
        origin="measured",
    )


def _profile() -> Profile:
    """A made-up device on which times add up exactly."""
    points = [*decode_points(LOAD), *prefill_points(LOAD)]
    times = [_time_row(c, point) for point in points for c in OFFERED if c.layer == 0 and c.variant != NoOp()]
    stacks = [replace(PARENT, layers=PARENT.layers[:depth]) for depth in range(4)]
    wholes = [_whole_row(model, point, is_anchor=model != stacks[2]) for point in points for model in stacks]
    counted = int(exact_memory(PARENT, LOAD).of_model(PARENT).value)
    memory = MemoryRow(
        backend="onnxruntime",
        format="fp32",
        batch=1,
        prompt_tokens=40,
        new_tokens=24,
        peak_bytes=counted + 50_000,
        exact_bytes=counted,
        origin="measured",
    )
    device = Device(vendor="none", model="made up", architecture="none", num_cores=1, memory_bytes=2**30, features=())
    return Profile(
        schema_version=1,
        name="made-up",
        device=device,
        software={},
        num_threads=1,
        created="2025-01-01T00:00:00+00:00",
        model=PARENT,
        ceilings=Ceilings(read_bytes_per_s=1e10, fp32_flop_per_s=1e11, reference_s=2e-4),
        times=tuple(times),
        wholes=tuple(wholes),
        memory=(memory,),
    )


PROFILE = _profile()


def _table(offered: Sequence[Candidate] = OFFERED) -> ScoreTable:
    """The parent's own parts lose nothing, the others something."""
    generator = random.Random(0)
    scores = []
    for c in offered:
        value = 0.0 if c.variant == getattr(PARENT.layers[c.layer], c.part) else 0.1 + generator.random()
        estimate = Estimate(value=value, low=value, high=value, num_values=4)
        scores.append(Score(candidate=c, metric="kl", estimate=estimate))
    return ScoreTable(parent=PARENT, scores=tuple(scores))


def _order(*budgets: str, profile: Profile = PROFILE, frontier_points: int = 0) -> Order:
    loads = {"chat": LOAD}
    return Order(
        profile=profile,
        backend="onnxruntime",
        weights=FP32,
        loads=loads,
        budgets=[parse_budget(text, loads) for text in budgets],
        time_limit_s=20.0,
        frontier_points=frontier_points,
    )


def _problem(order: Order) -> Problem:
    return build_problem(_table(), order, [part_costs(PROFILE, PARENT, LOAD, b.quantity) for b in order.budgets])


def _all_children(table: ScoreTable) -> list[tuple[float, dict[str, float]]]:
    """Score of every child, and the upper ends of its costs, predicted as a whole."""
    parts = [(layer, part) for layer in range(3) for part in ("mixer", "ffn")]
    groups = [[s for s in table.scores if (s.candidate.layer, s.candidate.part) == part] for part in parts]
    known: dict[tuple[str, ...], dict[str, float]] = {}
    children = []
    for scores in itertools.product(*groups):
        key = tuple(
            sorted(f"{s.candidate.part} {s.candidate.variant}" for s in scores)
        )  # layers cost alike in any order
        if key not in known:
            child = child_of(PARENT, [score.candidate for score in scores])
            known[key] = {quantity: cost.high for quantity, cost in predict(PROFILE, child, LOAD).items()}
        children.append((sum(score.estimate.value for score in scores), known[key]))
    return children


@pytest.mark.parametrize(
    "budgets",
    [
        ("time_per_token <= 60%",),
        ("time_per_token <= 45%", "memory <= 80%"),
        ("parameters <= 70%", "time_to_first_token <= 70%", "memory <= 300kB"),
    ],
)
def test_the_plan_is_the_best_of_all_children_predicted_as_wholes(budgets: tuple[str, ...]) -> None:
    table, order = _table(), _order(*budgets)
    parent = predict(PROFILE, PARENT, LOAD)
    limits = {budget.quantity: budget.limit_for(parent[budget.quantity]) for budget in order.budgets}
    scores = [score for score, costs in _all_children(table) if all(costs[q] <= limit for q, limit in limits.items())]
    plan = choose(table, order)
    assert (plan.status, plan.gap) == ("optimal", 0.0)
    assert plan.score == pytest.approx(min(scores))
    assert plan.bound <= plan.score
    for line in plan.budgets:
        promise = next(p for p in plan.promises if p.quantity == line.quantity)
        assert promise.child == predict(PROFILE, plan.child, LOAD)[line.quantity]
        assert promise.parent == parent[line.quantity]
        assert line.spent == pytest.approx(promise.child.high)
        assert line.spent <= line.limit * (1 + 1e-9)


def test_without_budgets_the_plan_is_the_parent() -> None:
    plan = choose(_table(), _order())
    assert plan.child == PARENT
    assert (plan.score, plan.budgets, plan.frontier) == (0.0, (), ())


def test_a_budget_of_all_that_the_parent_exactly_costs_leaves_it_as_it_is() -> None:
    assert choose(_table(), _order("parameters <= 100%")).child == PARENT


def test_a_budget_holds_at_the_upper_end_of_the_promise() -> None:
    parent = predict(PROFILE, PARENT, LOAD)["time_per_token"]
    assert parent.high > parent.value
    assert choose(_table(), _order(f"time_per_token <= {1e6 * parent.high}us")).child == PARENT
    assert choose(_table(), _order(f"time_per_token <= {1e6 * parent.value}us")).child != PARENT


def test_a_budget_binds_where_it_alone_keeps_a_better_child_out() -> None:
    plan = choose(_table(), _order("time_per_token <= 50%", "memory <= 1GB"))
    assert [line.is_binding for line in plan.budgets] == [True, False]


def test_of_two_budgets_that_bar_the_same_children_neither_binds() -> None:
    plan = choose(_table(), _order("time_per_token <= 50%", "time_per_token <= 50.000001%"))
    assert [line.is_binding for line in plan.budgets] == [False, False]


def test_a_budget_out_of_reach_is_named_with_the_least_that_can_be_reached() -> None:
    with pytest.raises(InputError) as caught:
        choose(_table(), _order("memory <= 1GB", "time_per_token <= 10us"))
    assert "time_per_token <= 10us: allows 10 µs, the least that any child costs is 20.4 µs" in str(caught.value)
    assert "memory <= 1GB" not in str(caught.value)


def test_budgets_that_clash_are_all_named() -> None:
    """One matrix in a part's place is small, and on this device very slow."""
    slow = tuple(replace(row, time_s=1e-3) if row.variant == "linear" else row for row in PROFILE.times)
    table = _table([c for c in OFFERED if c.variant != NoOp()])
    for budget in ("time_per_token <= 70%", "parameters <= 40%"):
        assert choose(table, _order(budget, profile=replace(PROFILE, times=slow))).budgets
    with pytest.raises(InputError, match="not all together: time_per_token <= 70%; parameters <= 40%"):
        choose(table, _order("time_per_token <= 70%", "parameters <= 40%", profile=replace(PROFILE, times=slow)))


def test_no_time_to_search_is_said_so() -> None:
    with pytest.raises(InputError, match="time limit"):
        choose(_table(), replace(_order("time_per_token <= 50%"), time_limit_s=1e-9))


def test_a_format_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="int8"):
        choose(_table(), replace(_order("memory <= 50%"), weights=Format(name="int8", group_size=32)))


def test_the_frontier_is_the_best_score_at_each_limit_and_falls() -> None:
    order = _order("time_per_token <= 60%", "memory <= 90%")
    problem = _problem(order)
    points = frontier(problem, 7, time_limit_s=20.0)
    everything: list[tuple[Choice, ...]] = list(itertools.product(*problem.groups))
    costs = [(sum(choice.score for choice in chosen), *spent(problem, chosen)) for chosen in everything]
    memory = problem.limits[1].limit
    assert len(points) == 7
    for point in points:
        best = min(score for score, time_s, size in costs if time_s <= point.limit * (1 + 1e-9) and size <= memory)
        assert point.score == pytest.approx(best, abs=1e-12)
        assert point.bound <= point.score
        assert point.spent <= point.limit * (1 + 1e-9)
    assert [p.limit for p in points] == sorted(p.limit for p in points)
    assert [p.score for p in points] == sorted((p.score for p in points), reverse=True)
    assert points[0].limit == pytest.approx(min(time_s for _, time_s, _ in costs))


def test_a_plan_holds_as_many_frontier_points_as_were_asked_for() -> None:
    assert len(choose(_table(), _order("time_per_token <= 60%", frontier_points=4)).frontier) == 4
