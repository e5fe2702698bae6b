"""Rules on children: what they let through, against every child there is."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.search.budget import parse_budget
from blockwright.search.build import Order, Rules, build_problem
from blockwright.search.choose import InfeasibleError, candidates_of, child_of, choose
from blockwright.search.problem import Problem, is_within
from blockwright.search.scores import Score, ScoreTable
from blockwright.servable import ENGINES, Engine, engine_obstacles
from blockwright.spec import FP32, Attention, Block, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Window
from blockwright.statistics import Estimate

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


@pytest.fixture(scope="module")
def wide_parent(made_up_parent: Model) -> Model:
    """A parent with an ffn as wide as readers of nemotron-nas want it."""
    return replace(made_up_parent, layers=(Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=256)),) * 3)


@pytest.fixture(scope="module")
def wide_table(wide_parent: Model) -> ScoreTable:
    """Of every obstacle some, in every layer: windows, odd widths, matrices, nothing."""
    mixers = [Attention(num_kv_heads=4), Attention(num_kv_heads=4, reach=Window(num_tokens=8)), LinearMixer(), NoOp()]
    ffns = [GatedFFN(width=256), GatedFFN(width=96), LinearFFN(), NoOp()]
    scores = []
    for layer in range(3):
        offered = [Candidate(layer=layer, part="mixer", variant=mixer) for mixer in mixers]
        offered += [Candidate(layer=layer, part="ffn", variant=ffn) for ffn in ffns]
        for index, candidate in enumerate(offered):
            value = 0.1 * (index % 4) * (1 + 0.3 * layer)
            estimate = Estimate(value=value, low=value, high=value, num_values=4)
            scores.append(Score(candidate=candidate, metric="kl", estimate=estimate))
    return ScoreTable(parent=wide_parent, scores=tuple(scores))


@pytest.fixture(scope="module")
def obstacles(wide_table: ScoreTable, every_child: EveryChild) -> dict[Model, dict[Engine, list[str]]]:
    """What stands in the way of every child."""
    return {child: engine_obstacles(child) for _, child in every_child(wide_table)}


def _allowed(problem: Problem, parent: Model) -> list[Model]:
    return [
        child_of(parent, candidates_of(chosen))
        for chosen in itertools.product(*problem.groups)
        if is_within(problem, chosen)
    ]


@pytest.mark.parametrize(
    "engines",
    [*((engine,) for engine in ENGINES), ("vllm", "llama.cpp"), ("tensorrt-llm", "transformers", "sglang"), ENGINES],
)
def test_exactly_the_children_that_every_engine_loads_are_let_through(
    engines: tuple[Engine, ...], order: MakeOrder, wide_table: ScoreTable, obstacles: dict
) -> None:
    problem = build_problem(wide_table, order(servable_by=engines))
    allowed = _allowed(problem, wide_table.parent)
    expected = {child for child, reasons in obstacles.items() if not any(reasons[engine] for engine in engines)}
    assert len(allowed) == len(set(allowed)), "a child stands to choice twice"
    assert set(allowed) == expected
    assert 0 < len(expected) <= len(obstacles)


@pytest.mark.parametrize(
    ("engines", "coupled"),
    [(("transformers",), []), (("tensorrt-llm",), []), (("vllm",), [0]), (("llama.cpp",), [0, 1, 2])],
)
def test_mixers_and_ffns_hang_together_only_where_an_engine_asks_for_it(
    engines: tuple[Engine, ...], coupled: list[int], order: MakeOrder, wide_table: ScoreTable
) -> None:
    groups = build_problem(wide_table, order(servable_by=engines)).groups
    sizes = {group[0].layer: len(group[0].candidates) for group in groups}
    assert [layer for layer, size in sizes.items() if size == 2] == coupled
    assert len(groups) == 6 - len(coupled)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"has_qk_norm": True}, "norms on queries and keys"),
        ({"has_qkv_bias": True}, "projections without biases"),
        ({"head_dim": 32}, "derives the head size"),
    ],
)
def test_a_parent_whose_children_an_engine_never_loads_is_refused(
    changes: dict, words: str, order: MakeOrder, wide_table: ScoreTable
) -> None:
    table = replace(wide_table, parent=replace(wide_table.parent, **changes))
    with pytest.raises(InputError, match=f"--servable-by sglang: got a parent no child of which .*{words}"):
        build_problem(table, order(servable_by=("transformers", "sglang")))
    assert build_problem(table, order(servable_by=("transformers",))).limits == ()


def test_a_layer_of_which_nothing_can_be_loaded_is_named(order: MakeOrder, wide_table: ScoreTable) -> None:
    odd = [s for s in wide_table.scores if s.candidate.layer != 1 or s.candidate.variant != NoOp()]
    odd = [s for s in odd if s.candidate.layer != 1 or s.candidate.variant != GatedFFN(width=256)]
    table = replace(wide_table, scores=tuple(odd))
    with pytest.raises(InputError, match=r"--servable-by llama\.cpp: layer 1: got no block of this library"):
        build_problem(table, order(servable_by=("llama.cpp",)))


def test_a_child_without_any_attention_is_not_served(order: MakeOrder, wide_table: ScoreTable) -> None:
    with pytest.raises(InfeasibleError) as caught:
        choose(wide_table, order(servable_by=("vllm",), forbidden=("*-mixer-attention*",)))
    assert caught.value.clash.clashing == ("servable by vllm: attention somewhere",)
    assert "asks for 1, the most that any child costs is 0" in str(caught.value)


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
    everything = build_problem(table, order(keep_first=99))
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
