"""Rules on children: what they let through, against every child there is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.search.budget import parse_budget
from blockwright.search.build import Order, Rules, build_problem
from blockwright.search.choose import choose
from blockwright.search.scores import ScoreTable
from blockwright.spec import FP32, Block, Model, NoOp

LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
MakeTable = Callable[..., ScoreTable]
MakeOrder = Callable[..., Order]
EveryChild = Callable[..., list[tuple[float, Model]]]


@pytest.fixture(scope="module")
def order(make_profile: Callable[..., Profile]) -> MakeOrder:
    """Makes an order with rules: `order("memory <= 80%", servable_by=("vllm",))`."""
    profile = make_profile([LOAD])

    def make(*budgets: str, **rules: object) -> Order:
        return Order(
            devices={"d": profile},
            backend="onnxruntime",
            formats=(FP32,),
            loads={"chat": (LOAD,)},
            budgets=[parse_budget(text, {"chat": LOAD}, ["d"]) for text in budgets],
            rules=Rules(**rules),  # type: ignore[arg-type]
        )

    return make


def test_rules_that_clash_by_themselves_are_not_laid_on_a_budget(order: MakeOrder, make_table: MakeTable) -> None:
    rules = {"forced": ("layer-00-*-none", "layer-02-*-none"), "forbidden": ("layer-01-*-none",)}
    with pytest.raises(InputError) as caught:
        choose(make_table(), order("parameters <= 80%", removes_contiguously=True, **rules))
    assert caught.value.field == "rules"
    assert "parameters" not in str(caught.value)


def test_first_and_last_layers_stay_as_they_are(order: MakeOrder, make_table: MakeTable) -> None:
    table = make_table()
    problem = build_problem(table, order(keep_first=1, keep_last=1))
    for group in problem.groups:
        own = getattr(table.parent.layers[group[0].layer], group[0].candidates[0].part)
        variants = [choice.candidates[0].variant for choice in group]
        assert variants == [own] if group[0].layer != 1 else len(variants) == 4
    plan = choose(table, order("parameters <= 75%", keep_first=1, keep_last=1))
    assert plan.child.layers[0] == plan.child.layers[2] == table.parent.layers[0] != plan.child.layers[1]
    everything = build_problem(table, order(keep_first=3))
    assert [len(group) for group in everything.groups] == [1] * 6


def test_patterns_forbid_and_force_candidates(order: MakeOrder, make_table: MakeTable) -> None:
    rules = {"forbidden": ("*-none", "layer-0[12]-mixer-linear"), "forced": ("layer-01-ffn-l*", "layer-02-ffn-ffn-*")}
    groups = build_problem(make_table(), order(**rules)).groups
    names = {f"{g[0].layer} {g[0].candidates[0].part}": [c.candidates[0].name[9:] for c in g] for g in groups}
    assert names == {
        "0 ffn": ["ffn-ffn-128", "ffn-ffn-64", "ffn-linear"],
        "0 mixer": ["mixer-attention-kv4", "mixer-attention-kv2", "mixer-linear"],
        "1 ffn": ["ffn-linear"],
        "1 mixer": ["mixer-attention-kv4", "mixer-attention-kv2"],
        "2 ffn": ["ffn-ffn-128", "ffn-ffn-64"],
        "2 mixer": ["mixer-attention-kv4", "mixer-attention-kv2"],
    }


@pytest.mark.parametrize(
    "rules",
    [
        {"forbidden": ("layer-01-mixer-*",)},
        {"forbidden": ("layer-01-mixer-a*",), "keep_first": 2},
        {"forced": ("layer-01-mixer-none",), "forbidden": ("layer-01-*-none",)},
        {"forced": ("layer-01-mixer-none",), "keep_last": 2},
    ],
)
def test_rules_that_leave_nothing_name_the_layer(rules: dict, order: MakeOrder, make_table: MakeTable) -> None:
    with pytest.raises(InputError, match=r"rules: layer 1, mixer: got no candidate .* layer-01-mixer-linear"):
        build_problem(make_table(), order(**rules))


def _num_shapes(child: Model) -> int:
    return len({block for block in child.layers if not _is_removed(block)})


def _is_removed(block: Block) -> bool:
    return block == Block(mixer=NoOp(), ffn=NoOp())


def _is_contiguous(layers: Sequence[Block]) -> bool:
    removed = [index for index, block in enumerate(layers) if _is_removed(block)]
    return not removed or removed[-1] - removed[0] == len(removed) - 1


@pytest.mark.parametrize("share", [30, 55, 70])
@pytest.mark.parametrize(
    ("most_shapes", "removes_contiguously"), [(1, False), (2, False), (None, True), (1, True), (2, True)]
)
def test_shapes_and_removed_layers_are_as_asked_for_and_the_best_of_those(
    share: int,
    most_shapes: int | None,
    removes_contiguously: bool,
    order: MakeOrder,
    make_table: MakeTable,
    sized: dict,
) -> None:
    asked = order(f"parameters <= {share}%", most_shapes=most_shapes, removes_contiguously=removes_contiguously)
    table = make_table(seed=share)
    scores = [
        score
        for score, child in sized[share]
        if (most_shapes is None or _num_shapes(child) <= most_shapes)
        and (not removes_contiguously or _is_contiguous(child.layers))
    ]
    plan = choose(table, asked)
    assert plan.score == pytest.approx(min(scores))
    assert most_shapes is None or _num_shapes(plan.child) <= most_shapes
    assert not removes_contiguously or _is_contiguous(plan.child.layers)


@pytest.fixture(scope="module")
def sized(make_table: MakeTable, every_child: EveryChild, costs_of: Callable, make_profile: Callable) -> dict:
    """The children within so many percent of the parent's parameters."""
    profile, found = make_profile([LOAD]), {}
    for share in (30, 55, 70):
        table = make_table(seed=share)
        limit = share / 100 * costs_of(profile, table.parent, LOAD)["parameters"].value
        found[share] = [
            (score, child)
            for score, child in every_child(table)
            if costs_of(profile, child, LOAD)["parameters"].value <= limit
        ]
        assert 0 < len(found[share]) < math.inf
    return found


def test_a_layer_without_scores_is_named(order: MakeOrder, make_table: MakeTable) -> None:
    table = make_table()
    scores = tuple(s for s in table.scores if (s.candidate.layer, s.candidate.part) != (1, "ffn"))
    with pytest.raises(InputError, match="scores: layer 1, ffn: got no candidate"):
        build_problem(replace(table, scores=scores), order())
