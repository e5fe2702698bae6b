"""What `--servable-by` lets through, against every child there is."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.search.budget import parse_budget
from blockwright.search.build import Order, Rules, build_problem
from blockwright.search.choose import candidates_of, child_of, choose
from blockwright.search.problem import Problem, is_within, num_runs
from blockwright.search.scores import Score, ScoreTable
from blockwright.search.solve import Optimal, solve
from blockwright.servable import ENGINES, Engine, obstacles
from blockwright.spec import (
    FP16,
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
    Window,
    parse_format,
    stored_as,
    with_format,
)
from blockwright.statistics import Estimate

LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
MakeOrder = Callable[..., Order]
EveryChild = Callable[..., list[tuple[float, Model]]]
NO_NOOPS = ("*-none",)


@pytest.fixture(scope="module")
def order(make_profile: Callable[..., Profile]) -> MakeOrder:
    """Makes an order with rules: `order("memory <= 80%", servable_by=("vllm",))`."""
    profile = make_profile([LOAD])

    def make(*budgets: str, formats: tuple[Format, ...] = (FP32,), **rules: object) -> Order:
        return Order(
            devices={"d": profile},
            backend="onnxruntime",
            formats=formats,
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


Reasons = dict[Model, dict[Engine, list[str]]]


@pytest.fixture(scope="module")
def reasons(wide_table: ScoreTable, every_child: EveryChild) -> Reasons:
    """What stands in the way of every child."""
    return _reasons(wide_table, every_child)


@pytest.fixture(scope="module")
def hollow_table(wide_parent: Model) -> ScoreTable:
    """A parent whose first layers are nothing, and scores that want its ffns kept and its attention gone."""
    nothing, own = Block(mixer=NoOp(), ffn=NoOp()), wide_parent.layers[0]
    parent = replace(wide_parent, layers=(nothing, nothing, own, own, own))
    scores = []
    for layer in range(5):
        offered = [(own.mixer, "mixer", 0.05 - 0.01 * layer), (NoOp(), "mixer", 0.0), (own.ffn, "ffn", 0.0)]
        for variant, part, value in [*offered, (NoOp(), "ffn", 0.6 - 0.1 * layer)]:
            candidate = Candidate(layer=layer, part=part, variant=variant)
            estimate = Estimate(value=value, low=value, high=value, num_values=4)
            scores.append(Score(candidate=candidate, metric="kl", estimate=estimate))
    return ScoreTable(parent=parent, scores=tuple(scores))


def _is_removed(block: Block) -> bool:
    return block == Block(mixer=NoOp(), ffn=NoOp())


def _reasons(table: ScoreTable, every_child: EveryChild) -> Reasons:
    """Of every child in fp16, which all engines store."""
    children = {child: with_format(child, FP16) for _, child in every_child(table)}
    return {child: {engine: obstacles(half, engine) for engine in ENGINES} for child, half in children.items()}


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
    engines: tuple[Engine, ...], order: MakeOrder, wide_table: ScoreTable, reasons: Reasons
) -> None:
    weights = FP16 if "tensorrt" in engines else FP32
    problem = build_problem(wide_table, order(servable_by=engines, formats=(weights,)))
    allowed = [with_format(child, FP32) for child in _allowed(problem, wide_table.parent)]
    expected = {child for child, found in reasons.items() if not any(found[engine] for engine in engines)}
    assert len(allowed) == len(set(allowed)), "a child stands to choice twice"
    assert set(allowed) == expected
    assert 0 < len(expected) <= len(reasons)


STORED = tuple(map(parse_format, ("fp16", "fp32", "int8", "int4-g32", "int4-g64", "int4-g256")))


@pytest.fixture(scope="module")
def stored_table(wide_parent: Model) -> ScoreTable:
    """Two layers in formats of every kind, of which some suit no width of 96, and some nothing."""
    parent, estimate = (
        replace(wide_parent, layers=wide_parent.layers[:2]),
        Estimate(value=0.1, low=0.1, high=0.1, num_values=4),
    )
    offered = [(0, "mixer", LinearMixer()), (0, "ffn", GatedFFN(width=96)), (0, "ffn", NoOp())]
    offered += [(1, "mixer", wide_parent.layers[0].mixer), (1, "ffn", GatedFFN(width=256))]
    scores = {
        Score(
            candidate=Candidate(layer=layer, part=part, variant=stored_as(v, f)), metric="kl", estimate=estimate
        ): None
        for layer, part, v in offered
        for f in STORED
    }
    return ScoreTable(parent=parent, scores=tuple(scores))


def test_tensorrt_is_offered_the_formats_that_it_keeps(order: MakeOrder, stored_table: ScoreTable) -> None:
    problem, free = (
        build_problem(stored_table, order(servable_by=engines, formats=STORED)) for engines in (("tensorrt",), ())
    )
    children = {*_allowed(free, stored_table.parent)}
    allowed = _allowed(problem, stored_table.parent)
    assert len(allowed) == len({*allowed}) < len(children)
    assert {*allowed} == {child for child in children if not obstacles(child, "tensorrt")}
    assert len(problem.groups) == 4, "parts stay apart"


def test_formats_that_tensorrt_has_no_network_for_are_refused(order: MakeOrder, wide_table: ScoreTable) -> None:
    with pytest.raises(InputError, match=r"--servable-by tensorrt: layer 0: .* an ffn in int8-g32.*--format"):
        build_problem(wide_table, order(servable_by=("tensorrt",), formats=(parse_format("int8"),), forbidden=NO_NOOPS))


def test_tensorrt_is_not_offered_fp16_beside_bf16(order: MakeOrder, stored_table: ScoreTable) -> None:
    brain, half = Format(name="bf16"), FP16
    scores = [
        replace(each, candidate=replace(each.candidate, variant=stored_as(each.candidate.variant, weights)))
        for each in stored_table.scores
        for weights in (half, brain)
    ]
    table = replace(stored_table, scores=tuple(dict.fromkeys(scores)))
    with pytest.raises(InputError, match=r"--servable-by tensorrt: got fp16 and bf16 to choose from"):
        build_problem(table, order(servable_by=("tensorrt",), formats=(half, brain)))
    assert build_problem(table, order(formats=(half, brain))).groups
    assert build_problem(table, order(servable_by=("tensorrt",), formats=(brain,))).groups


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "rules", [{}, {"keep_first": 1}, {"keep_first": 2}, {"keep_last": 2}, {"forced": ("layer-01-mixer-attention*",)}]
)
def test_no_ffn_comes_before_the_first_attention_however_many_layers_are_removed(
    engine: Engine, rules: dict, order: MakeOrder, hollow_table: ScoreTable, every_child: EveryChild
) -> None:
    free = set(_allowed(build_problem(hollow_table, order(**rules)), hollow_table.parent))
    asked = build_problem(hollow_table, order(servable_by=(engine,), **rules))
    allowed = _allowed(asked, hollow_table.parent)
    loadable = {child for child, found in _reasons(hollow_table, every_child).items() if not found[engine]}
    assert len(allowed) == len(set(allowed))
    assert set(allowed) == free & loadable
    late = [child for child in allowed if _is_removed(child.layers[0]) and not _is_removed(child.layers[-1])]
    assert late or "forced" not in rules, "removed first layers are let through"


@pytest.mark.parametrize("share", [40, 70, 100])
@pytest.mark.parametrize("rules", [{}, {"most_shapes": 2}, {"removes_contiguously": True}])
def test_the_best_child_with_attention_first_is_found(
    share: int, rules: dict, order: MakeOrder, hollow_table: ScoreTable, every_child: EveryChild
) -> None:
    parent, text = hollow_table.parent, f"parameters <= {share}%"
    parameters = order().costs(parent, "d", LOAD, "parameters")
    within = [
        (score, child)
        for score, child in every_child(hollow_table)
        if parameters.of_model(child).value <= share / 100 * parameters.of_model(parent).value
        and len({block for block in child.layers if not _is_removed(block)}) <= rules.get("most_shapes", 5)
        and (not rules.get("removes_contiguously") or num_runs([*map(_is_removed, child.layers)]) <= 1)
    ]
    best = min(score for score, child in within if not obstacles(child, "vllm"))
    assert best > min(score for score, _ in within), "the rule would not be felt"
    answer = solve(build_problem(hollow_table, order(text, servable_by=("vllm",), **rules)))
    assert isinstance(answer, Optimal)
    assert answer.score == pytest.approx(best)
    assert obstacles(child_of(parent, candidates_of(answer.chosen)), "vllm") == []


def test_layers_behind_attention_that_stays_need_no_limit(order: MakeOrder, hollow_table: ScoreTable) -> None:
    texts = [
        [limit.text for limit in build_problem(hollow_table, order(servable_by=("vllm",), **rules)).limits]
        for rules in ({}, {"forced": ("layer-02-mixer-attention*",)}, {"keep_first": 2})
    ]
    somewhere = "servable by vllm: attention somewhere"
    for found, layers in zip(texts, ([0, 1, 2, 3, 4], [0, 1], [2, 3, 4]), strict=True):
        before = [f"servable by vllm: attention up to layer {layer} if it has an ffn" for layer in layers]
        assert found == [somewhere, *before]


@pytest.mark.parametrize(
    ("engines", "coupled"),
    [(("transformers",), []), (("tensorrt-llm",), []), (("vllm",), []), (("llama.cpp",), [0, 1, 2])],
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
        ({"rope": Rope(theta=1e4, scaling="dynamic")}, "scaled by dynamic is not read"),
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
    with pytest.raises(InputError, match=r"--servable-by sglang: layer 1: got no block of this library"):
        build_problem(table, order(servable_by=("sglang",)))


def test_a_child_without_any_attention_is_not_served(order: MakeOrder, wide_table: ScoreTable) -> None:
    with pytest.raises(InputError, match=r"--servable-by vllm: got no block with attention .* rules leave none"):
        choose(wide_table, order(servable_by=("vllm",), forbidden=("*-mixer-attention*",)))


def test_why_no_block_with_attention_can_be_loaded_is_said(
    order: MakeOrder, make_table: Callable[..., ScoreTable]
) -> None:
    with pytest.raises(InputError) as caught:
        choose(make_table(), order(servable_by=("llama.cpp",), forbidden=("*-ffn-ffn-*",)))
    for reason in ("a linear ffn is not read", "the attention of a layer with a no-op ffn is dropped"):
        assert str(caught.value).count(reason) == 1
