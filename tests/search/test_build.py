"""From scores, profiles and budgets to a problem: every kind of budget, against every child predicted as a whole."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from blockwright.cost import Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.search import build
from blockwright.search.budget import Budget, parse_budget
from blockwright.search.build import Order, build_problem
from blockwright.search.choose import InfeasibleError, choose
from blockwright.search.scores import ScoreTable
from blockwright.spec import FP32, Candidate, Format, GatedFFN, LinearFFN, Model, NoOp, stored_as

INT4 = Format(name="int4", group_size=32)
CHAT = Load(batch=1, prompt_tokens=40, new_tokens=24)
SERVE = tuple(Load(batch=batch, prompt_tokens=20, new_tokens=30) for batch in (1, 2, 4))
Costs = dict[Quantity, Cost]
CostsOf = Callable[..., Costs]
EveryChild = Callable[..., list[tuple[float, Model]]]
MakeOrder = Callable[..., Order]
MakeTable = Callable[..., ScoreTable]


@pytest.fixture
def devices(make_profile: Callable[..., Profile]) -> dict[str, Profile]:
    """Two that differ in speed, and in how fast one matrix is."""
    server = make_profile([CHAT, *SERVE], formats=[FP32, INT4], name="server-profile")
    edge = make_profile([CHAT, *SERVE], formats=[FP32, INT4], slowness=3.0, name="edge-profile")
    times = tuple(replace(row, time_s=1e-4) if row.variant == "linear" else row for row in edge.times)
    return {"server": server, "edge": replace(edge, times=times)}


@pytest.fixture
def order(devices: dict[str, Profile]) -> MakeOrder:
    """Makes an order for both devices and loads, the second with three batches."""

    def make(*budgets: str, batches: Sequence[Load] = SERVE, **changes: object) -> Order:
        loads = {"chat": CHAT, "serve": batches[0]}
        plain = Order(
            devices=devices,
            backend="onnxruntime",
            formats=(FP32,),
            loads={"chat": (CHAT,), "serve": tuple(batches)},
            budgets=[parse_budget(text, loads, list(devices)) for text in budgets],
        )
        return replace(plain, **changes)  # type: ignore[arg-type]

    return make


def _is_kept(budget: Budget, child: Costs, parent: Costs) -> bool:
    """At the end of the interval that is against the budget."""
    cost, whole = child[budget.quantity], parent[budget.quantity].value
    is_above = budget.least is None or cost.low >= budget.least.of(whole) * (1 - 1e-9)
    return is_above and (budget.most is None or cost.high <= budget.most.of(whole) * (1 + 1e-9))


def _best(asked: Order, table: ScoreTable, every_child: EveryChild, costs_of: CostsOf, serve: Load) -> float:
    """The least score of any child within all budgets, each on its device, at one batch of the load to serve."""
    loads = {"chat": CHAT, "serve": serve}

    def costs(budget: Budget, child: Model) -> Costs:
        return costs_of(asked.devices[budget.device], child, loads[budget.load], asked.formats)

    children = every_child(table, asked.formats)
    parent = build.with_format(table.parent, asked.formats[0])
    kept = [
        score
        for score, child in children
        if all(_is_kept(budget, costs(budget, child), costs(budget, parent)) for budget in asked.budgets)
    ]
    return min(kept, default=math.inf)


@pytest.mark.parametrize(
    "budgets",
    [
        ("time_per_token@server:chat <= 60%", "parameters >= 60%"),
        ("40% <= memory@server:chat <= 70%",),
        ("100us <= time_per_token@server:chat <= 150us", "50% <= disk <= 70%"),
        ("throughput@edge:chat >= 150%",),
        ("throughput@server:chat >= 3ktok/s", "throughput@edge:chat <= 1.5ktok/s"),
        ("time_per_token@server:chat <= 75%", "time_per_token@edge:chat <= 80%"),
        ("energy@edge:chat <= 70%", "ttft@server:chat <= 80%", "latency@server:chat >= 20%"),
    ],
)
def test_budgets_of_every_kind_hold_at_the_end_that_is_against_them(
    budgets: tuple[str, ...], order: MakeOrder, make_table: MakeTable, every_child: EveryChild, costs_of: CostsOf
) -> None:
    table, asked = make_table(), order(*budgets)
    plan = choose(table, asked)
    assert plan.score == pytest.approx(_best(asked, table, every_child, costs_of, SERVE[0]))
    assert plan.score > 0, "the budgets ask for nothing"
    for line in plan.budgets:
        promise = next(
            p for p in plan.promises if (p.quantity, p.device, p.load) == (line.quantity, line.device, line.load)
        )
        end = promise.child.low if line.is_least else promise.child.high
        assert line.spent == pytest.approx(end)
        assert line.spent >= line.limit * (1 - 1e-9) if line.is_least else line.spent <= line.limit * (1 + 1e-9)


def test_two_devices_are_not_one(
    made_up_offered: list[Candidate],
    order: MakeOrder,
    make_table: MakeTable,
    every_child: EveryChild,
    costs_of: CostsOf,
) -> None:
    """What is fast on one is slow on the other: a matrix alone."""
    table = make_table([candidate for candidate in made_up_offered if candidate.variant != NoOp()])
    budgets = {"server": "time_per_token@server:chat <= 60%", "edge": "time_per_token@edge:chat <= 85%"}
    scores = {name: choose(table, order(text)).score for name, text in budgets.items()}
    asked = order(*budgets.values())
    both = choose(table, asked)
    assert both.score == pytest.approx(_best(asked, table, every_child, costs_of, SERVE[0]))
    assert both.score > max(scores.values())
    assert both.devices == {"server": "server-profile", "edge": "edge-profile"}
    assert (both.device, both.profile) == ("server", "server-profile")
    assert {line.device for line in both.budgets} == {"server", "edge"}


@pytest.mark.parametrize(
    ("budgets", "batch"),
    [
        (("memory@server:serve <= 700kB", "throughput@server:serve >= 4.2ktok/s"), 2),
        (("memory@server:serve <= 900kB", "throughput@server:serve >= 7ktok/s"), 4),
        (("memory@server:serve <= 600kB", "latency@server:serve <= 10ms"), 1),
    ],
)
def test_of_several_batches_the_one_is_taken_that_loses_least(
    budgets: tuple[str, ...],
    batch: int,
    order: MakeOrder,
    make_table: MakeTable,
    every_child: EveryChild,
    costs_of: CostsOf,
) -> None:
    table, asked = make_table(), order(*budgets)
    best = {load.batch: _best(asked, table, every_child, costs_of, load) for load in SERVE}
    plan = choose(table, asked)
    assert plan.score == pytest.approx(min(best.values()))
    assert plan.batches == {"batch of serve on server": batch}
    assert plan.loads == {"chat": CHAT, "serve": next(load for load in SERVE if load.batch == batch)}
    assert len(plan.budgets) == len(budgets)
    for line in plan.budgets:
        costs = costs_of(asked.devices["server"], plan.child, plan.loads["serve"])[line.quantity]
        assert line.spent == pytest.approx(costs.low if line.is_least else costs.high)
        assert line.spent >= line.limit if line.is_least else line.spent <= line.limit


def test_a_batch_that_nothing_hangs_on_is_the_first(order: MakeOrder, make_table: MakeTable) -> None:
    plan = choose(make_table(), order("memory@server:chat <= 70%", frontier_points=3))
    assert plan.batches == {} and plan.loads["serve"] == SERVE[0]
    assert plan.frontier


def test_budgets_that_no_batch_keeps_name_what_the_easiest_would_need(order: MakeOrder, make_table: MakeTable) -> None:
    with pytest.raises(InfeasibleError) as caught:
        choose(make_table(), order("memory@server:serve <= 1kB"))
    (move,) = caught.value.clash.moves
    assert move.alone is not None
    one = choose(make_table(), order(f"memory@server:serve <= {move.alone + 1}B"))
    assert one.batches == {"batch of serve on server": 1}
    assert one.budgets[0].spent == pytest.approx(move.alone) == pytest.approx(move.needed)


@pytest.fixture
def few(made_up_parent: Model) -> list[Candidate]:
    """The parent's own and nothing, in every layer; and one matrix for an ffn."""
    found = []
    for layer, block in enumerate(made_up_parent.layers):
        found += [Candidate(layer=layer, part="mixer", variant=variant) for variant in (block.mixer, NoOp())]
        found += [Candidate(layer=layer, part="ffn", variant=variant) for variant in (block.ffn, LinearFFN(), NoOp())]
    return found


def test_each_layers_format_is_chosen(
    few: list[Candidate], order: MakeOrder, make_table: MakeTable, every_child: EveryChild, costs_of: CostsOf
) -> None:
    table = make_table(few, formats=[FP32, INT4])
    asked = order("memory@server:chat <= 55%", "time_per_token@server:chat <= 75%", formats=(FP32, INT4))
    plan = choose(table, asked)
    assert plan.score == pytest.approx(_best(asked, table, every_child, costs_of, SERVE[0]))
    assert plan.format == "mixed"
    stored = {str(getattr(part, "weights", "")) for block in plan.child.layers for part in (block.mixer, block.ffn)}
    assert {"fp32", "int4-g32"} <= stored


def test_scores_of_the_format_asked_for_are_taken(
    few: list[Candidate], order: MakeOrder, make_table: MakeTable
) -> None:
    both, plain = make_table(few, formats=[FP32, INT4]), make_table(few)
    for table, origin in ((both, INT4), (plain, FP32)):
        problem = build_problem(table, order(formats=(INT4,)))
        scores = {score.candidate: score.estimate.value for score in table.scores}
        for choice in (choice for group in problem.groups for choice in group):
            (candidate,) = choice.candidates
            assert candidate.variant == stored_as(candidate.variant, INT4)
            scored = replace(candidate, variant=stored_as(candidate.variant, origin))
            assert choice.score == scores[scored]
        assert sum(map(len, problem.groups)) == len(few)


def test_formats_without_scores_are_refused(few: list[Candidate], order: MakeOrder, make_table: MakeTable) -> None:
    with pytest.raises(InputError, match=r"scores of fp32; expected scores of fp32, int4-g32.*--format int4-g32"):
        build_problem(make_table(few), order(formats=(FP32, INT4)))
    with pytest.raises(InputError, match="scores of int4-g32; expected scores of fp32"):
        build_problem(make_table(few, formats=[INT4]), order())


def test_scores_are_of_the_metric_asked_for(few: list[Candidate], order: MakeOrder, make_table: MakeTable) -> None:
    table = make_table(few, metrics=["kl", "lm_loss"])
    shifted = [replace(s, estimate=replace(s.estimate, value=s.estimate.value - 0.5, low=-1.0)) for s in table.scores]
    table = replace(table, scores=tuple(shifted))
    for metric in ("kl", "lm_loss"):
        problem = build_problem(table, order(metric=metric))
        values = [score.estimate.value for score in shifted if score.metric == metric]
        expected = [max(0.0, value) for value in values] if metric == "kl" else values
        assert sorted(c.score for group in problem.groups for c in group) == sorted(expected)
        assert choose(table, order(metric=metric)).metric == metric
    with pytest.raises(InputError, match=r"metric: got 'task'; expected one of the table's: kl, lm_loss"):
        build_problem(table, order(metric="task"))


def test_a_score_or_a_cost_that_is_no_number_is_named_with_its_layer_and_budget(
    few: list[Candidate], order: MakeOrder, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(few)
    scores = [replace(s, estimate=replace(s.estimate, value=math.nan)) for s in table.scores]
    broken = (*table.scores[:7], scores[7], *table.scores[8:])
    with pytest.raises(InputError, match="layer 1, ffn, layer-01-ffn-ffn-128: score: got nan"):
        build_problem(replace(table, scores=broken), order())
    real, endless = build.part_costs, Cost(value=1.0, low=1.0, high=math.inf, origin="modelled")

    def breaks_one(*arguments: object, **named: object) -> object:
        costs = real(*arguments, **named)  # type: ignore[arg-type]
        return replace(costs, of_ffn=lambda ffn: endless if ffn == LinearFFN() else costs.of_ffn(ffn))

    monkeypatch.setattr(build, "part_costs", breaks_one)
    named = "layer 0, ffn, layer-00-ffn-linear: cost under memory@edge:chat <= 70%: got inf"
    with pytest.raises(InputError, match=named):
        build_problem(table, order("memory@edge:chat <= 70%"))


def test_a_candidate_that_was_not_measured_is_named(order: MakeOrder, make_table: MakeTable) -> None:
    table = make_table([Candidate(layer=0, part="ffn", variant=GatedFFN(width=512))])
    with pytest.raises(InputError, match="profile edge-profile: got no time of ffn-512 as ffn in fp32"):
        build_problem(table, order("time_per_token@edge:chat <= 70%"))


def test_limits_stand_in_the_order_of_budgets(
    devices: Mapping[str, Profile], order: MakeOrder, make_table: MakeTable
) -> None:
    budgets = ["40% <= memory@server:chat <= 3MB", "throughput@edge:serve >= 10tok/s"]
    limits = build_problem(make_table(), order(*budgets)).limits
    assert [(limit.text, limit.is_least, limit.when) for limit in limits] == [
        (budgets[0], True, None),
        (budgets[0], False, None),
        *((budgets[1], False, ("batch of serve on edge", str(load.batch))) for load in SERVE),
    ]
    assert limits[1].limit == 3e6
    assert [limit.limit for limit in limits[2:]] == pytest.approx([load.batch * 30 / 10 for load in SERVE])


def test_a_device_need_not_know_the_loads_of_the_other(
    devices: dict[str, Profile], order: MakeOrder, make_table: MakeTable, make_profile: Callable[..., Profile]
) -> None:
    chatty = {"server": make_profile(SERVE, name="serves"), "edge": make_profile([CHAT], name="chats")}
    budgets = ("throughput@server:serve >= 4ktok/s", "time_per_token@edge:chat <= 80%")
    plan = choose(make_table(), order(*budgets, devices=chatty))
    assert {(promise.device, promise.load) for promise in plan.promises} == {("server", "serve"), ("edge", "chat")}
    with pytest.raises(InputError, match="profile chats: "):
        choose(make_table(), order("memory@edge:serve <= 80%", devices=chatty))
    with pytest.raises(InputError, match="profile chats: "):
        choose(make_table(), order(devices={"edge": chatty["edge"]}))


def test_a_throughput_that_is_not_known_from_above_is_refused(
    devices: dict[str, Profile], order: MakeOrder, make_table: MakeTable
) -> None:
    """One whole model that was held out took three times what its parts say: a latency may be nothing at all."""
    server = devices["server"]
    wholes = tuple(row if row.is_anchor else replace(row, time_s=3 * row.time_s) for row in server.wholes)
    asked = order("throughput@server:chat >= 1tok/s", devices={"server": replace(server, wholes=wholes)})
    with pytest.raises(InputError, match=r"throughput@server:chat: got a request latency of -.* an interval above 0"):
        choose(make_table(), asked)
