"""What `--servable-by` leaves out is an error where nothing but a no-op is left, and is told where more is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline.tables import print_plan
from blockwright.search.budget import parse_budget
from blockwright.search.build import Order, Rules, build_problem
from blockwright.search.choose import choose
from blockwright.search.left_out import left_out, left_out_words
from blockwright.search.scores import Score, ScoreTable
from blockwright.servable import Engine, obstacles
from blockwright.spec import (
    Attention,
    Block,
    Candidate,
    Format,
    GatedFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Part,
    Variant,
    parse_format,
    stored_as,
)
from blockwright.statistics import Estimate

LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
MIXERS: tuple[Mixer, ...] = (Attention(num_kv_heads=4), LinearMixer(), NoOp())
NO_WIDTH_FITS = (GatedFFN(width=172), GatedFFN(width=88), NoOp())
"""Of groups of 32."""
ONE_FITS = (GatedFFN(width=172), GatedFFN(width=96), NoOp())

Ask = Callable[..., Order]


@pytest.fixture(scope="module")
def ask(make_profile: Callable[..., Profile]) -> Ask:
    """Makes an order with rules: `ask("disk <= 80%", formats=("int8",), servable_by=("tensorrt",))`."""
    profile = make_profile([LOAD], formats=[parse_format("fp32"), parse_format("int4-g32")])

    def make(*budgets: str, formats: Sequence[str], **rules: object) -> Order:
        return Order(
            devices={"d": profile},
            backend="onnxruntime",
            formats=tuple(map(parse_format, formats)),
            loads={"chat": (LOAD,)},
            budgets=[parse_budget(text, {"chat": LOAD}, ["d"]) for text in budgets],
            rules=Rules(**rules),  # type: ignore[arg-type]
        )

    return make


@pytest.fixture(scope="module")
def table_of(made_up_parent: Model) -> Callable[..., ScoreTable]:
    """Makes scores of MIXERS and some ffns in some formats, in every layer."""

    def make(ffns: Sequence[Variant], *formats: str) -> ScoreTable:
        own = Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=172))
        estimate = Estimate(value=0.1, low=0.1, high=0.1, num_values=4)
        offered: list[tuple[Part, Sequence[Variant]]] = [("mixer", MIXERS), ("ffn", ffns)]
        found = {
            Candidate(layer=layer, part=part, variant=stored_as(variant, weights)): None
            for weights in map(parse_format, formats)
            for layer in range(3)
            for part, variants in offered
            for variant in variants
        }
        scores = tuple(Score(candidate=candidate, metric="kl", estimate=estimate) for candidate in found)
        return ScoreTable(parent=replace(made_up_parent, layers=(own,) * 3), scores=scores)

    return make


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4-g256"])
@pytest.mark.parametrize("budgets", [(), ("disk <= 1kB",)])
def test_a_format_that_an_engine_does_not_keep_is_no_reason_to_remove_every_layer(
    weights: str, budgets: tuple[str, ...], ask: Ask, table_of: Callable[..., ScoreTable]
) -> None:
    order = ask(*budgets, formats=(weights,), servable_by=("tensorrt",))
    with pytest.raises(InputError) as caught:
        choose(table_of(ONE_FITS, "fp32"), order)
    told = str(caught.value)
    assert f"a mixer in {parse_format(weights)}" in told and f"an ffn in {parse_format(weights)}" in told
    assert "--servable-by tensorrt: got nothing but no-ops left of the mixers of all layers" in told
    assert "Search with --format fp16, and with --backend tensorrt" in told, "172 suits no group"


def test_widths_that_no_group_divides_are_no_reason_to_remove_ffns(
    ask: Ask, table_of: Callable[..., ScoreTable]
) -> None:
    table = table_of(NO_WIDTH_FITS, "int4-g32")
    order = ask(formats=("int4-g32",), servable_by=("tensorrt",))
    with pytest.raises(InputError) as caught:
        build_problem(table, order)
    told = str(caught.value)
    assert "left of the ffns of all layers: an ffn in int4-g32 with 172 inputs" in told and "mixers" not in told
    assert "--format fp16" in told and "--force '*-ffn-none'" in told
    partly = [s for s in table.scores if s.candidate.layer != 1]
    partly += [s for s in table_of(ONE_FITS, "int4-g32").scores if s.candidate.layer == 1]
    with pytest.raises(InputError, match="left of the ffns of layers 0, 2: "):
        build_problem(replace(table, scores=tuple(partly)), order)


@pytest.mark.parametrize(
    ("ffns", "rules"),
    [
        (NO_WIDTH_FITS, {"forced": ("*-ffn-none",)}),
        (NO_WIDTH_FITS, {"forbidden": ("*-ffn-ffn-*",)}),
        (ONE_FITS, {"forbidden": ("*-ffn-ffn-96*",)}),
    ],
)
def test_whoever_forbids_the_others_himself_is_not_contradicted(
    ffns: Sequence[Variant], rules: dict, ask: Ask, table_of: Callable[..., ScoreTable]
) -> None:
    order = ask(formats=("int4-g32",), servable_by=("tensorrt",), **rules)
    groups = build_problem(table_of(ffns, "int4-g32"), order).groups
    assert {c.candidates[0].variant for group in groups for c in group if c.candidates[0].part == "ffn"} == {NoOp()}


def test_a_plan_says_what_was_left_out_and_whose_scores_it_goes_by(
    ask: Ask, table_of: Callable[..., ScoreTable], capsys: pytest.CaptureFixture[str]
) -> None:
    order = replace(ask("disk <= 90%", formats=("int4-g32",), servable_by=("tensorrt",)), may_extrapolate=True)
    plan = choose(table_of(ONE_FITS, "fp32"), order)
    lent, left = plan.notes
    assert lent.startswith("Scores of fp32 serve for int4-g32: ")
    assert (
        "leaves out 3 of the 18 candidates" in left
        and "with 172 inputs, which is no whole number of groups (3)" in left
    )
    print_plan(plan)
    printed = " ".join(capsys.readouterr().out.split())
    assert lent in printed and left in printed
    assert choose(table_of(ONE_FITS, "int4-g32"), replace(order, rules=Rules())).notes == ()


@pytest.mark.parametrize("engines", [("tensorrt",), ("vllm",), ("tensorrt", "llama.cpp")])
def test_what_is_left_out_is_in_no_block_that_can_be_loaded(
    engines: tuple[Engine, ...], table_of: Callable[..., ScoreTable]
) -> None:
    table = table_of(ONE_FITS, "fp16", "int4-g32", "int8")
    offered = [score.candidate for score in table.scores]
    found = left_out(offered, table.parent, engines)
    assert set(found) == {c for c in offered if not _is_somewhere(c, offered, table.parent, engines)}
    assert found and all(found.values())
    (told,) = left_out_words(offered, table.parent, engines)
    assert f"leaves out {len(found)} of the {len(offered)} candidates offered" in told
    assert left_out_words(offered, table.parent, ("transformers",)) == []


def _is_somewhere(candidate: Candidate, offered: Sequence[Candidate], parent: Model, engines: Sequence[Engine]) -> bool:
    """By the reasons against whole models, of which those of other layers are none of this one's."""
    for other in offered:
        if other.layer == candidate.layer and other.part != candidate.part:
            parts = {c.part: c.variant for c in (candidate, other)}
            whole = Block(mixer=Attention(num_kv_heads=4, weights=Format(name="fp16")), ffn=parent.layers[0].ffn)
            layers = [whole, whole, whole, replace(whole, **parts)]
            reasons = [r for e in engines for r in obstacles(replace(parent, layers=tuple(layers)), e)]
            if not any(reason.startswith("layer 3:") for reason in reasons):
                return True
    return False
