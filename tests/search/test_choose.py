"""From scores, profiles and budgets to a plan, against every child there is."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blockwright.cost import Cost, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.profiler.cost_model import predict
from blockwright.search.build import build_problem
from blockwright.search.choose import InfeasibleError, Steps, choose
from blockwright.search.frontier import frontier
from blockwright.search.problem import Choice, spent
from blockwright.spec import Candidate, Format, Model, NoOp
from choosing import LOAD, MakeOrder, MakeTable


@pytest.mark.parametrize(
    "budgets",
    [
        ("time_per_token <= 60%",),
        ("time_per_token <= 45%", "memory <= 80%"),
        ("parameters <= 70%", "time_to_first_token <= 70%", "memory <= 300kB"),
        ("request_latency <= 55%", "disk <= 60%", "energy <= 70%"),
    ],
)
def test_the_plan_is_the_best_of_all_children_predicted_as_wholes(
    budgets: tuple[str, ...],
    profile: Profile,
    order: MakeOrder,
    make_table: MakeTable,
    every_child: Callable[..., list[tuple[float, Model]]],
    costs_of: Callable[..., dict[Quantity, Cost]],
) -> None:
    table, asked = make_table(), order(*budgets)
    parent = predict(profile, table.parent, LOAD)
    limits: dict[Quantity, float] = {}
    for budget in asked.budgets:
        assert budget.most is not None
        limits[budget.quantity] = budget.most.of(parent[budget.quantity].value)
    children = [(score, costs_of(profile, child, LOAD)) for score, child in every_child(table)]
    scores = [score for score, costs in children if all(costs[q].high <= limit for q, limit in limits.items())]
    plan = choose(table, asked)
    assert (plan.status, plan.gap) == ("optimal", 0.0)
    assert plan.score == pytest.approx(min(scores))
    assert plan.bound <= plan.score
    assert [line.quantity for line in plan.budgets] == list(limits)
    for line in plan.budgets:
        promise = next(p for p in plan.promises if p.quantity == line.quantity)
        assert promise.child == predict(profile, plan.child, LOAD)[line.quantity]
        assert promise.parent == parent[line.quantity]
        assert line.limit == pytest.approx(limits[line.quantity])
        assert line.spent == pytest.approx(promise.child.high)
        assert line.spent <= line.limit * (1 + 1e-9)


def test_without_budgets_the_plan_is_the_parent(order: MakeOrder, make_table: MakeTable) -> None:
    plan = choose(make_table(), order())
    assert plan.child == plan.parent == make_table().parent
    assert (plan.score, plan.budgets, plan.frontier, plan.pool) == (0.0, (), (), ())


def test_a_budget_of_all_that_the_parent_exactly_costs_leaves_it_as_it_is(
    order: MakeOrder, make_table: MakeTable
) -> None:
    plan = choose(make_table(), order("parameters <= 100%"))
    assert plan.child == plan.parent


def test_a_budget_holds_at_the_upper_end_of_the_promise(
    profile: Profile, order: MakeOrder, make_table: MakeTable
) -> None:
    table = make_table()
    parent = predict(profile, table.parent, LOAD)["time_per_token"]
    assert parent.high > parent.value
    assert choose(table, order(f"time_per_token <= {1e6 * parent.high}us")).child == table.parent
    assert choose(table, order(f"time_per_token <= {1e6 * parent.value}us")).child != table.parent


def test_a_budget_binds_where_it_alone_keeps_a_better_child_out(order: MakeOrder, make_table: MakeTable) -> None:
    plan = choose(make_table(), order("time_per_token <= 50%", "memory <= 1GB"))
    assert [line.is_binding for line in plan.budgets] == [True, False]
    assert plan.budgets[0].price > 0 and plan.budgets[1].price == 0


def test_of_two_budgets_that_bar_the_same_children_neither_binds(order: MakeOrder, make_table: MakeTable) -> None:
    plan = choose(make_table(), order("time_per_token <= 50%", "time_per_token <= 50.000001%"))
    assert [line.is_binding for line in plan.budgets] == [False, False]


def test_a_budget_out_of_reach_is_named_with_the_least_that_can_be_reached(
    order: MakeOrder, make_table: MakeTable
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        choose(make_table(), order("memory <= 1GB", "time_per_token <= 10us"))
    assert "time_per_token <= 10us: the least that any child costs is 20.4 µs" in str(caught.value)
    assert "memory <= 1GB" not in str(caught.value)
    assert caught.value.clash.clashing == ("time_per_token <= 10us",)


def test_budgets_that_clash_are_all_named(
    profile: Profile, order: MakeOrder, make_table: MakeTable, made_up_offered: Sequence[Candidate]
) -> None:
    """One matrix in a part's place is small, and on this device very slow."""
    slow = replace(
        profile,
        times=tuple(replace(row, time_s=1e-3) if row.variant == "linear" else row for row in profile.times),
    )
    table = make_table([c for c in made_up_offered if c.variant != NoOp()])
    for budget in ("time_per_token <= 70%", "parameters <= 40%"):
        assert choose(table, order(budget, device=slow)).budgets
    with pytest.raises(InputError, match="not all together: time_per_token <= 70%; parameters <= 40%"):
        choose(table, order("time_per_token <= 70%", "parameters <= 40%", device=slow))


def test_no_time_to_search_is_said_so(order: MakeOrder, make_table: MakeTable) -> None:
    with pytest.raises(InputError, match="time limit"):
        choose(make_table(), order("time_per_token <= 50%", time_limit_s=1e-9))


def test_a_format_that_was_not_measured_is_refused(order: MakeOrder, make_table: MakeTable) -> None:
    with pytest.raises(InputError, match="int8"):
        choose(make_table(), order("memory <= 50%", formats=(Format(name="int8", group_size=32),)))


def test_the_frontier_is_the_best_score_at_each_limit_and_falls(order: MakeOrder, make_table: MakeTable) -> None:
    problem = build_problem(make_table(), order("time_per_token <= 60%", "memory <= 90%"))
    points = frontier(problem, 0, 7, time_limit_s=20.0)
    everything: list[tuple[Choice, ...]] = list(itertools.product(*problem.groups))
    costs = [(sum(choice.score for choice in chosen), *spent(problem, chosen)) for chosen in everything]
    memory = problem.limits[1].limit
    assert len(points) == 7
    for point in points:
        best = min(score for score, time_s, size in costs if time_s <= point.limit * (1 + 1e-9) and size <= memory)
        assert point.value == pytest.approx(best, abs=1e-12)
        assert point.bound <= point.value
        assert point.spent <= point.limit * (1 + 1e-9)
    assert [p.limit for p in points] == sorted(p.limit for p in points)
    assert [p.value for p in points] == sorted((p.value for p in points), reverse=True)
    assert points[0].limit == pytest.approx(min(time_s for _, time_s, _ in costs), rel=1e-3)


def test_a_plan_holds_as_many_frontier_points_as_were_asked_for(order: MakeOrder, make_table: MakeTable) -> None:
    steps: list[str] = []
    asked = order("time_per_token <= 60%", "memory <= 90%", frontier_points=4)
    plan = choose(make_table(), asked, Steps(on_point=lambda: steps.append("point")))
    assert len(plan.frontier) == len(steps) == 4
    assert [point.limit for point in plan.frontier] == sorted(point.limit for point in plan.frontier)


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_a_pool_begins_with_the_plan_itself(tolerance: float, order: MakeOrder, make_table: MakeTable) -> None:
    told: list[None] = []
    asked = order("time_per_token <= 60%", pool_size=5, min_layers_differ=2, tolerance=tolerance)
    plan = choose(make_table(), asked, Steps(on_found=lambda: told.append(None)))
    assert len(plan.pool) == len(told) == 5
    assert plan.pool[0].child == plan.child
    assert plan.pool[0].score == pytest.approx(plan.score)
    for index, other in enumerate(plan.pool):
        differ = [sum(a != b for a, b in zip(other.child.layers, p.child.layers, strict=True)) for p in plan.pool]
        assert other.layers_differ == differ[0]
        assert all(number >= 2 for number in differ[:index])


def test_of_children_as_good_as_each_other_the_pool_begins_with_the_plans(
    order: MakeOrder, make_table: MakeTable
) -> None:
    table = make_table()
    same = tuple(replace(s, estimate=replace(s.estimate, value=0.5, low=0.5, high=0.5)) for s in table.scores)
    for share in (40, 50, 60, 70, 80):
        plan = choose(replace(table, scores=same), order(f"parameters <= {share}%", pool_size=2))
        assert plan.pool[0].child == plan.child


def test_the_frontier_goes_along_what_the_page_can_show(order: MakeOrder, make_table: MakeTable) -> None:
    """The first budget from above; a throughput is bounded from below."""
    budgets = ("throughput >= 1ktok/s", "parameters >= 10%", "memory <= 80%")
    plan = choose(make_table(), order(*budgets, frontier_points=4))
    memory = next(line for line in plan.budgets if not line.is_least)
    parent = next(p.parent for p in plan.promises if p.quantity == "memory")
    assert memory.quantity == "memory"
    assert plan.frontier and all(0.1 * memory.limit < p.spent <= parent.high * (1 + 1e-9) for p in plan.frontier)
    assert plan.frontier_axes is not None and plan.frontier_axes.along.quantity == "memory"
    assert plan.frontier_axes.plan_along == pytest.approx(memory.spent)
    assert choose(make_table(), order("throughput >= 1ktok/s", frontier_points=4)).frontier == ()


def test_a_throughput_is_promised_and_priced_in_tokens_per_second(
    profile: Profile, order: MakeOrder, make_table: MakeTable
) -> None:
    plan = choose(make_table(), order("throughput >= 3ktok/s"))
    (line,), tokens = plan.budgets, LOAD.batch * LOAD.new_tokens
    (promise,) = [p for p in plan.promises if p.quantity == "throughput"]
    latency = predict(profile, plan.child, LOAD)["request_latency"]
    assert (line.limit, line.is_least, line.share) == (pytest.approx(3e3), True, None)
    assert line.spent == pytest.approx(promise.child.low) == pytest.approx(tokens / latency.high)
    assert line.spent >= 3e3
    asked = order(f"latency <= {1e3 * tokens / 3e3}ms")
    (same,) = choose(make_table(), asked).budgets
    assert line.price == pytest.approx(same.price * (tokens / 3e3) ** 2 / tokens)
    assert line.price > 0
