"""Specs survive JSON, refuse what cannot be, and change by replacement."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.spec import (
    FP32,
    HEAD_BESIDE_INTEGERS,
    Attention,
    Block,
    Candidate,
    Family,
    Format,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Rope,
    Window,
    format_words,
    model_from_data,
    model_to_data,
    parse_format,
    variant_name,
    with_candidate,
    with_format,
)

formats = st.one_of(
    st.builds(Format, name=st.sampled_from(["fp32", "fp16", "bf16"])),
    st.builds(Format, name=st.sampled_from(["int8", "int4"]), group_size=st.sampled_from([16, 32, 64, 128])),
)
ropes = st.builds(
    Rope,
    theta=st.floats(1, 1e7),
    scaling=st.sampled_from(["default", "linear", "llama3"]),
    parameters=st.lists(st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False)), max_size=3).map(tuple),
)
ffns = st.one_of(
    st.builds(GatedFFN, width=st.integers(1, 4096), weights=formats),
    st.builds(LinearFFN, weights=formats),
    st.just(NoOp()),
)


def mixers(num_heads: int) -> st.SearchStrategy[Attention | LinearMixer | NoOp]:
    """Every mixer that a model of so many heads may have."""
    divisors = [heads for heads in range(1, num_heads + 1) if num_heads % heads == 0]
    reaches = st.just(Full()) | st.builds(Window, num_tokens=st.integers(1, 4096))
    attentions = st.builds(Attention, num_kv_heads=st.sampled_from(divisors), reach=reaches, weights=formats)
    return st.one_of(attentions, st.builds(LinearMixer, weights=formats), st.just(NoOp()))


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Models of every family with every kind of block."""
    num_heads = draw(st.integers(1, 12))
    blocks = st.builds(Block, mixer=mixers(num_heads), ffn=ffns)
    return Model(
        family=draw(st.sampled_from(get_args(Family))),
        vocab_size=draw(st.integers(1, 10**6)),
        hidden_size=draw(st.integers(1, 10**4)),
        num_heads=num_heads,
        head_dim=draw(st.integers(1, 256)),
        max_positions=draw(st.integers(1, 10**6)),
        norm_eps=draw(st.floats(1e-8, 1e-3)),
        rope=draw(ropes),
        activation="silu",
        has_tied_embeddings=draw(st.booleans()),
        has_qkv_bias=draw(st.booleans()),
        has_output_bias=draw(st.booleans()),
        has_ffn_bias=draw(st.booleans()),
        has_qk_norm=draw(st.booleans()),
        embedding_weights=draw(formats),
        head_weights=draw(st.none() | formats),
        layers=tuple(draw(st.lists(blocks, max_size=4))),
    )


SMALL = llama(
    (
        Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=96)),
        Block(mixer=LinearMixer(), ffn=NoOp()),
    ),
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    vocab_size=100,
    max_positions=128,
)


@given(models())
def test_a_model_survives_json(model: Model) -> None:
    assert model_from_data(json.loads(json.dumps(model_to_data(model)))) == model


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (lambda data: data["layers"][0]["mixer"].update(num_kv_head=2), "model.layers[0].mixer.num_kv_head"),
        (lambda data: data["rope"].pop("theta"), "model.rope.theta"),
        (lambda data: data.update(hidden_size="64"), "model.hidden_size"),
        (lambda data: data.update(num_heads=True), "model.num_heads"),
        (lambda data: data.update(num_heads=4.0), "model.num_heads"),
        (lambda data: data.update(family="bert"), "model.family"),
        (lambda data: data.update(layers={}), "model.layers"),
        (lambda data: data.update(rope=3), "model.rope"),
        (lambda data: data["rope"].update(kind="rope"), "model.rope.kind"),
        (lambda data: data["layers"][1]["ffn"].update(kind="moe"), "model.layers[1].ffn.kind"),
        (lambda data: data["layers"][1]["ffn"].pop("kind"), "model.layers[1].ffn.kind"),
        (lambda data: data["layers"][0]["mixer"].update(num_kv_heads=3), "model"),
        (lambda data: data["layers"][0]["ffn"].update(width=0), "model"),
        (lambda data: data["embedding_weights"].update(name="int4"), "model.embedding_weights"),
        (lambda data: data.update(schema_version=2), "model.schema_version"),
        (lambda data: data.pop("schema_version"), "model.schema_version"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_stands(damage: Callable[[Any], None], field: str) -> None:
    data = json.loads(json.dumps(model_to_data(SMALL)))
    damage(data)
    with pytest.raises(InputError) as caught:
        model_from_data(data)
    assert caught.value.field == field


@pytest.mark.parametrize("num_kv_heads", [0, -2, 3, 8])
def test_kv_heads_that_do_not_divide_the_heads_are_refused(num_kv_heads: int) -> None:
    with pytest.raises(ValueError, match=r"layer 0: .* KV heads that divide 4 heads"):
        replace(SMALL, layers=(Block(mixer=Attention(num_kv_heads=num_kv_heads), ffn=NoOp()),))


@given(formats)
def test_a_format_is_read_as_it_is_written(weights: Format) -> None:
    assert parse_format(str(weights)) == weights


def test_int4_alone_means_groups_of_32() -> None:
    assert parse_format("int4") == Format(name="int4", group_size=32)


@pytest.mark.parametrize("text", ["", "int3", "fp32-g32", "int4-g", "int4-g33", "int4-g8", "int4-gx", "INT4"])
def test_a_format_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="format: got"):
        parse_format(text)


def test_formats_that_are_offered_are_those_that_are_taken() -> None:
    with pytest.raises(InputError, match=r"expected fp16, bf16, int4-g32, int4-g64 or int4-g128\."):
        parse_format("int4-g48", ("fp16", "bf16", "int4"))
    assert format_words(("fp32", "int8")) == "fp32 or int8-g32"
    assert format_words(("fp32",)) == "fp32"


def test_a_format_reaches_every_matrix_of_the_layers_and_a_head_that_suits_it() -> None:
    int4 = Format(name="int4", group_size=32)
    model = with_format(SMALL, int4)
    assert model.layers == (
        Block(mixer=Attention(num_kv_heads=2, weights=int4), ffn=GatedFFN(width=96, weights=int4)),
        Block(mixer=LinearMixer(weights=int4), ffn=NoOp()),
    )
    assert model.embedding_weights == HEAD_BESIDE_INTEGERS
    assert with_format(model, FP32) == SMALL
    assert with_format(replace(SMALL, head_weights=int4), FP32) == SMALL, "a head of its own goes too"


def test_a_candidate_replaces_one_part_of_one_layer() -> None:
    model = with_candidate(SMALL, Candidate(layer=1, part="ffn", variant=GatedFFN(width=8)))
    assert model.layers == (SMALL.layers[0], Block(mixer=LinearMixer(), ffn=GatedFFN(width=8)))
    assert replace(model, layers=SMALL.layers) == SMALL


def test_variants_of_one_part_of_a_layer_have_names_of_their_own() -> None:
    reaches = (Full(), Window(num_tokens=2), Window(num_tokens=21))
    part_mixers = [Attention(num_kv_heads=heads, reach=reach) for heads in (1, 2, 12) for reach in reaches]
    part_ffns = [GatedFFN(width=width) for width in range(1, 200)]
    for variants in ([*part_mixers, LinearMixer(), NoOp()], [*part_ffns, LinearFFN(), NoOp()]):
        assert len({variant_name(variant) for variant in variants}) == len(variants)


def test_a_candidate_names_its_file() -> None:
    assert Candidate(layer=3, part="mixer", variant=Attention(num_kv_heads=2)).name == "layer-03-mixer-attention-kv2"
