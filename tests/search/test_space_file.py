"""Spaces as files: read strictly, held against the parent, and counted before anything trains."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.search.space import LayerSpace, SpaceSettings, candidates
from blockwright.search.space_file import read_space
from blockwright.search.space_size import describe_space
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Candidate,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    NoOp,
    Window,
    parse_format,
    variant_name,
    with_candidate,
)

Write = Callable[[str], Path]
PARENT = llama(
    (Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=128)),) * 4,
    vocab_size=96,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=256,
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of candidates."""

    def write(text: str) -> Path:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return path

    return write


def _names(offered: list[Candidate], layer: int) -> dict[str, list[str]]:
    return {p: [variant_name(c.variant) for c in offered if (c.layer, c.part) == (layer, p)] for p in ("mixer", "ffn")}


def test_an_empty_file_and_no_file_mean_the_same(write: Write) -> None:
    assert read_space(write(""), PARENT) == SpaceSettings()


def test_numbers_take_the_place_of_the_default_shares() -> None:
    offered = candidates(PARENT, SpaceSettings(kv_heads=(1,), ffn_widths=(100, 7)))
    assert _names(offered, 3) == {
        "mixer": ["attention-kv4", "attention-kv1", "linear", "none"],
        "ffn": ["ffn-128", "ffn-100", "ffn-7", "linear", "none"],
    }


def test_shares_and_numbers_that_are_both_given_are_both_offered() -> None:
    offered = candidates(PARENT, SpaceSettings(ffn_widths=(7,), ffn_width_shares=(0.5,), kv_head_shares=()))
    assert _names(offered, 0) == {
        "mixer": ["attention-kv4", "linear", "none"],
        "ffn": ["ffn-128", "ffn-64", "ffn-7", "linear", "none"],
    }


def test_every_number_of_kv_heads_is_offered_in_every_reach() -> None:
    offered = candidates(PARENT, SpaceSettings(kv_heads=(2,), windows=(16, 64), has_linear=False, has_no_op=False))
    assert [c.variant for c in offered if (c.layer, c.part) == (1, "mixer")] == [
        Attention(num_kv_heads=4),
        Attention(num_kv_heads=2),
        Attention(num_kv_heads=4, reach=Window(num_tokens=64)),
        Attention(num_kv_heads=2, reach=Window(num_tokens=64)),
        Attention(num_kv_heads=4, reach=Window(num_tokens=16)),
        Attention(num_kv_heads=2, reach=Window(num_tokens=16)),
    ]


def test_overrides_change_single_keys_of_their_layers_and_the_last_decides(write: Write) -> None:
    text = """
kv_heads: [2]
ffn_widths: [64]
has_linear: false
overrides:
  - layers: 1-3
    kv_heads: []
    has_no_op: false
  - {layers: "0, 2", ffn_width_shares: [0.25], formats: [int4-g32]}
  - {layers: 3, has_no_op: true}
"""
    settings = read_space(write(text), PARENT)
    offered = candidates(PARENT, settings)
    assert [_names(offered, layer)["mixer"] for layer in range(4)] == [
        ["attention-kv4", "attention-kv2", "none"],
        ["attention-kv4"],
        ["attention-kv4"],
        ["attention-kv4", "none"],
    ]
    assert [_names(offered, layer)["ffn"] for layer in range(4)] == [
        ["ffn-128", "ffn-32", "none"],
        ["ffn-128", "ffn-64"],
        ["ffn-128", "ffn-32"],
        ["ffn-128", "ffn-64", "none"],
    ]
    int4 = (parse_format("int4-g32"),)
    assert [settings.formats_of(layer) for layer in range(4)] == [int4, (), int4, ()]


@pytest.mark.parametrize(
    ("text", "field", "got"),
    [
        ("kv_head: [2]", "kv_head", "an unknown key"),
        ("overrides: [{layers: 0, kv_head: [2]}]", "overrides[0].kv_head", "an unknown key"),
        ("overrides: [{kv_heads: [2]}]", "overrides[0].layers", "no such key"),
        ("overrides: [{layers: 3-1}]", "overrides[0].layers", "'3-1'"),
        ("overrides: [{layers: first}]", "overrides[0].layers", "'first'"),
        ("overrides: [{layers: 0}, {layers: 0-4}]", "overrides[1].layers", "'0-4'"),
        ("kv_heads: [2, 3]", "kv_heads[1]", "3 for layer 0"),
        ("kv_heads: [8]", "kv_heads[0]", "8 for layer 0"),
        ("kv_heads: [0]", "kv_heads[0]", "0"),
        ("kv_heads: 2", "kv_heads", "2"),
        ("kv_heads: [0.5]", "kv_heads[0]", "0.5"),
        ("kv_head_shares: [2]", "kv_head_shares[0]", "2.0"),
        ("ffn_widths: [64, 129]", "ffn_widths[1]", "129 for layer 0"),
        ("windows: [256]", "windows[0]", "256 for layer 0"),
        ("windows: [-1]", "windows[0]", "-1"),
        ("overrides: [{layers: '2,3', ffn_widths: [200]}]", "overrides[0].ffn_widths[0]", "200 for layer 2"),
        ("formats: [int5]", "formats[0]", "'int5'"),
        ("formats: [tf32]", "formats[0]", "'tf32'"),
        ("has_linear: 1", "has_linear", "1"),
    ],
)
def test_what_no_layer_can_have_is_refused_by_file_and_key(text: str, field: str, got: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(InputError) as caught:
        read_space(path, PARENT)
    assert (caught.value.field, str(caught.value.got)) == (f"{path}: {field}", got)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_holds_no_keys_is_refused_by_name(text: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(InputError) as caught:
        read_space(path, PARENT)
    assert caught.value.field == str(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml.*No such file"):
        read_space(tmp_path / "gone.yaml", PARENT)


def test_a_number_that_an_override_replaces_need_not_suit_its_layers() -> None:
    second = Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=32))
    parent = replace(PARENT, layers=(PARENT.layers[0], second))
    space = SpaceSettings(kv_heads=(4, 2), ffn_widths=(64,))
    with pytest.raises(InputError, match=r"space\.kv_heads\[0\]: got 4 for layer 1"):
        candidates(parent, space)
    other = LayerSpace(layers=1, kv_heads=(1,), ffn_width_shares=(0.5,))
    assert candidates(parent, replace(space, overrides=(other,)))


def test_a_parent_with_a_window_is_offered_shorter_ones_only() -> None:
    near = Block(mixer=Attention(num_kv_heads=4, reach=Window(num_tokens=32)), ffn=NoOp())
    parent = replace(PARENT, layers=(near,))
    assert candidates(parent, SpaceSettings(windows=(31,)))
    with pytest.raises(InputError, match="less than the 32 tokens it reaches"):
        candidates(parent, SpaceSettings(windows=(32,)))


def test_the_size_of_a_space_is_what_its_candidates_come_to() -> None:
    space = SpaceSettings(windows=(16,), overrides=(LayerSpace(layers="1-2", has_linear=False),))
    size, offered = describe_space(PARENT, space), candidates(PARENT, space)
    empty = replace(PARENT, layers=(Block(mixer=NoOp(), ffn=NoOp()),) * 4)
    counts = {c: parameters(with_candidate(empty, c)) - parameters(empty) for c in offered}
    trained = [c for c in offered if c.variant not in (NoOp(), getattr(PARENT.layers[c.layer], c.part))]
    assert size.num_candidates == len(offered)
    assert size.num_trained == len(trained)
    assert size.trained_parameters == sum(counts[c] for c in trained)
    assert [p for row in size.rows for p in row.parameters] == [counts[c] for c in offered]
    assert size.num_children_log10 == pytest.approx(math.log10((8 * 6 * 7 * 5) ** 2))
    assert size.library_bytes == 4 * size.trained_parameters


def test_training_is_counted_by_hand() -> None:
    space = SpaceSettings(
        kv_heads=(2,),
        ffn_widths=(64,),
        has_no_op=False,
        overrides=(LayerSpace(layers="1-3", kv_heads=(), ffn_widths=(), has_linear=False),),
    )
    size = describe_space(PARENT, space)
    layer = 64 * 64 * 4 + 3 * 64 * 128
    mixers = 6 * (2 * 64 * 64 + 2 * 64 * 32) + 6 * 64 * 64 + 2 * 4 * 3 * 64 * 128
    ffns = 6 * 3 * 64 * 64 + 6 * 64 * 64
    assert size.training_flops_per_token == 4 * 2 * layer + mixers + ffns
    assert [(row.num_trained, row.variants) for row in size.rows[:2]] == [
        (2, tuple(variant_name(v) for v in (Attention(num_kv_heads=4), Attention(num_kv_heads=2), LinearMixer()))),
        (2, tuple(variant_name(v) for v in (GatedFFN(width=128), GatedFFN(width=64), LinearFFN()))),
    ]
    assert FP32 not in space.formats_of(0)
