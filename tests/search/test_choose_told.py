"""What is told of a choice: what stands in its way, in which units, and what was not proven."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blockwright.cost import UNIT_OF, Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.profiler.cost_model import predict
from blockwright.search.budget import parse_budget
from blockwright.search.build import Rules
from blockwright.search.choose import InfeasibleError, choose
from blockwright.search.explain import Clash, Move
from blockwright.search.frontier import frontier
from blockwright.search.pool import pool
from blockwright.search.words import clash_words, in_own_units
from blockwright.spec import Candidate, Model, NoOp
from blockwright.units import format_quantity
from choosing import LOAD, MakeOrder, MakeTable


def test_budgets_that_clash_are_told_as_they_were_written(
    profile: Profile,
    order: MakeOrder,
    make_table: MakeTable,
    every_child: Callable[..., list[tuple[float, Model]]],
    costs_of: Callable[..., dict[Quantity, Cost]],
    made_up_offered: Sequence[Candidate],
) -> None:
    """A throughput is solved for as a latency; nothing of that is seen. Small parts are slow on this device."""
    slow = replace(
        profile,
        name="slow",
        times=tuple(replace(row, time_s=1e-3) if row.variant == "linear" else row for row in profile.times),
    )
    table = make_table([c for c in made_up_offered if c.variant != NoOp()])
    costs = [costs_of(slow, child, LOAD) for _, child in every_child(table)]
    tokens, memory = sorted(c["throughput"].low for c in costs), sorted(c["memory"].high for c in costs)
    fast, small = 0.99 * tokens[-1], 1.01 * memory[0]
    texts = (f"throughput >= {fast:.6f}tok/s", f"memory <= {small:.6f}B")
    with pytest.raises(InfeasibleError) as caught:
        choose(table, order(*texts, device=slow))
    best: dict[Quantity, float] = {
        "throughput": max(c["throughput"].low for c in costs if c["memory"].high <= small),
        "memory": min(c["memory"].high for c in costs if c["throughput"].low >= fast),
    }
    data = caught.value.to_data()
    assert data["clashing"] == list(texts)
    told = {move["text"].split()[0]: move for move in data["moves"]}
    expected: list[tuple[Quantity, tuple[float, float], bool]] = [
        ("throughput", (fast, tokens[-1]), True),
        ("memory", (small, memory[0]), False),
    ]
    for name, ends, is_least in expected:
        move = told[name]
        assert (move["limit"], move["alone"], move["is_least"]) == (*map(pytest.approx, ends), is_least)
        assert move["needed"] == pytest.approx(best[name], rel=2e-3) and move["is_proven"]
        assert f"{texts[not is_least]} would have to be {_amount(move['needed'], name)}" in str(caught.value)
    share = data["loosening"]
    for factor, is_met in ((1.0, True), (0.99, False)):
        loose = (fast * (1 - factor * share), small * (1 + factor * share))
        assert any(c["throughput"].low >= loose[0] and c["memory"].high <= loose[1] for c in costs) == is_met


def _amount(value: float, name: Quantity) -> str:
    return format_quantity(value, UNIT_OF[name])


def test_a_throughput_out_of_reach_is_told_in_tokens_per_second(
    profile: Profile, order: MakeOrder, make_table: MakeTable, every_child: Callable[..., list[tuple[float, Model]]]
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        choose(make_table(), order("throughput >= 90ktok/s"))
    most = max(predict(profile, child, LOAD)["throughput"].low for _, child in every_child(make_table())[-1:])
    words = f"throughput >= 90ktok/s: the most that any child reaches is {_amount(most, 'throughput')}"
    assert words in str(caught.value)


def test_what_is_not_proven_is_not_told_as_a_fact(order: MakeOrder) -> None:
    asked = order("throughput >= 4ktok/s", "memory <= 10kB")
    latency, size = LOAD.new_tokens / 4e3, 10e3
    moves = (
        Move(
            text="throughput >= 4ktok/s",
            limit=latency,
            is_least=False,
            alone=latency / 2,
            needed=2 * latency,
            bound=1.25 * latency,
            is_proven=False,
            at={},
        ),
        Move(
            text="memory <= 10kB",
            limit=size,
            is_least=False,
            alone=size / 2,
            needed=None,
            bound=None,
            is_proven=False,
            at={},
        ),
    )
    clash = Clash(clashing=(), is_smallest=False, moves=moves, loosening=0.0504, is_least_loosening=False)
    words = clash_words(in_own_units(clash, asked), asked)
    assert words == [
        "which budgets clash was not found out in time; they are throughput >= 4ktok/s; memory <= 10kB",
        "with the others kept, throughput >= 4ktok/s would have to be at most 3.2 ktok/s, not proven in time; "
        "2 ktok/s would do",
        "with the others kept, memory <= 10kB would have to be moved, how far was not found out in time",
        "all budgets loosened by 5.1 % would fit (whether less would is not proven in time)",
    ]
    both = replace(clash, clashing=tuple(move.text for move in moves), loosening=None)
    words = clash_words(in_own_units(both, asked), asked)
    assert "whether fewer clash was not found out in time" in words[0] and "each alone" not in words[0]
    assert words[-1] == "by how much all budgets must be loosened together was not found out in time"


def test_a_device_that_was_not_measured_at_anothers_load_is_said_to_promise_nothing(
    profile: Profile, order: MakeOrder, make_table: MakeTable, make_profile: Callable[..., Profile]
) -> None:
    long = Load(batch=1, prompt_tokens=80, new_tokens=64)
    other = make_profile([long], name="other")
    loads = {"chat": (LOAD,), "long": (long,)}
    budgets = [parse_budget("time_per_token@made-up:chat <= 60%", {"chat": LOAD}, ["made-up", "other"])]
    asked = replace(order(), devices={"made-up": profile, "other": other}, loads=loads, budgets=budgets)
    plan = choose(make_table(), asked)
    assert {(p.device, p.load) for p in plan.promises} == {("made-up", "chat"), ("other", "long")}
    assert [(a.device, a.load) for a in plan.absent] == [("made-up", "long"), ("other", "chat")]
    assert all("profile" in a.reason and "slots" in a.reason for a in plan.absent)
    assert other.model is not None
    misshapen = replace(other, model=replace(other.model, hidden_size=32))
    with pytest.raises(InputError, match="profile other: hidden_size"):
        choose(make_table(), replace(asked, devices={"made-up": profile, "other": misshapen}))


def test_a_pool_that_has_all_there_is_says_so(order: MakeOrder, make_table: MakeTable) -> None:
    plan = choose(make_table(), order("parameters <= 99%", pool_size=20, min_layers_differ=3))
    assert 1 < len(plan.pool) < 20 and all(one.is_proven for one in plan.pool)
    assert plan.shortfalls == (
        f"The pool has {len(plan.pool)} of 20 plans: no other child within the budgets differs in 3 layers.",
    )


def test_a_pool_and_a_frontier_that_time_ended_say_so(
    order: MakeOrder, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(function: Callable[..., list]) -> Callable[..., list]:
        return lambda *arguments, **named: function(*arguments, **(named | {"time_limit_s": -1.0}))

    monkeypatch.setattr("blockwright.search.choose.pool", hasty(pool))
    monkeypatch.setattr("blockwright.search.sweep.frontier", hasty(frontier))
    plan = choose(make_table(), order("parameters <= 60%", pool_size=3, frontier_points=3))
    assert len(plan.shortfalls) == 2 and all("the time limit came first" in told for told in plan.shortfalls)


def test_one_budget_is_not_told_as_one_of_several_and_in_the_units_it_was_written_in(
    order: MakeOrder, make_table: MakeTable
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        choose(make_table(), order("memory <= 10KiB"))
    message = str(caught.value)
    assert "memory <= 10KiB: the least that any child costs is " in message and " KiB" in message
    assert "kB" not in message and "e+" not in message
    for words in ("others", "all of them", "all budgets", "allows"):
        assert words not in message


def test_rules_that_stand_in_the_way_are_named(order: MakeOrder, make_table: MakeTable) -> None:
    rules = Rules(keep_first=3, forbidden=("layer-00-ffn-linear",))
    with pytest.raises(InfeasibleError) as caught:
        choose(make_table(), replace(order("parameters <= 50%"), rules=rules))
    assert caught.value.clash.rules == ("--keep-first 3",)
    assert "without --keep-first 3 some child would do" in str(caught.value)
    with pytest.raises(InfeasibleError) as caught:
        choose(make_table(), replace(order("parameters <= 1K"), rules=rules))
    assert caught.value.clash.rules == () and "without the rules no child would do either" in str(caught.value)


def test_rules_that_are_only_together_too_much_are_told_so(order: MakeOrder, make_table: MakeTable) -> None:
    asked, kept = order("parameters <= 50%"), ("layer-0?-mixer-attention-kv4", "layer-0?-ffn-ffn-128")
    with pytest.raises(InputError, match=r"3 first and 3 last layers to keep.* the 3 layers"):
        choose(make_table(), replace(asked, rules=Rules(keep_first=3, keep_last=3)))
    with pytest.raises(InfeasibleError, match="to leave out any one of them is not known to be enough"):
        choose(make_table(), replace(asked, rules=Rules(forced=kept, keep_last=3)))


def test_a_search_that_stops_at_its_tolerance_says_so(order: MakeOrder, make_table: MakeTable) -> None:
    asked = order("parameters <= 60%")
    plan = choose(make_table(), replace(asked, tolerance=1.0, frontier_points=3))
    assert plan.status == "feasible" and plan.is_within_tolerance
    assert any("within the tolerance of 1 asked for" in sentence for sentence in plan.shortfalls)
    assert not replace(plan, tolerance=0.0).is_within_tolerance
