"""What is offered in every layer."""

from dataclasses import replace

import pytest

from blockwright.llama import llama
from blockwright.search.space import SpaceSettings, candidates, ffns, mixers, width_multiple
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, NoOp, Window

MODEL = llama(
    (
        Block(mixer=Attention(num_kv_heads=8), ffn=GatedFFN(width=384)),
        Block(mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=32)), ffn=GatedFFN(width=8192)),
        Block(mixer=LinearMixer(), ffn=LinearFFN()),
        Block(mixer=NoOp(), ffn=NoOp()),
    ),
    hidden_size=64,
    num_heads=8,
    head_dim=16,
    vocab_size=96,
    max_positions=256,
)
SETTINGS = [
    SpaceSettings(),
    SpaceSettings(kv_head_shares=(0.5, 0.49, 0.001), ffn_width_shares=(0.999, 0.5, 0.501, 0.001)),
    SpaceSettings(kv_head_shares=(), ffn_width_shares=(), has_linear=False, has_no_op=False),
    SpaceSettings(has_linear=False),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_part_offers_its_own_first_and_nothing_twice(settings: SpaceSettings) -> None:
    offered = candidates(MODEL, settings)
    for layer, block in enumerate(MODEL.layers):
        for part, own in (("mixer", block.mixer), ("ffn", block.ffn)):
            variants = [c.variant for c in offered if (c.layer, c.part) == (layer, part)]
            assert variants[0] == own
            assert len(set(variants)) == len(variants)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_candidate_fits_the_model_and_costs_less_than_the_own_part(settings: SpaceSettings) -> None:
    for candidate in candidates(MODEL, settings):
        own = MODEL.layers[candidate.layer]
        match candidate.variant:
            case Attention(num_kv_heads=num_kv_heads, reach=reach):
                assert isinstance(own.mixer, Attention)
                assert own.mixer.num_kv_heads % num_kv_heads == 0
                assert reach == own.mixer.reach
            case GatedFFN(width=width):
                assert isinstance(own.ffn, GatedFFN)
                assert width == own.ffn.width or (width < own.ffn.width and width % width_multiple(own.ffn.width) == 0)
            case LinearMixer():
                assert candidate.part == "mixer"
            case LinearFFN():
                assert candidate.part == "ffn"
            case NoOp():
                assert settings.has_no_op or getattr(own, candidate.part) == NoOp()


def test_shares_become_these_variants() -> None:
    assert mixers(Attention(num_kv_heads=8), SpaceSettings()) == [
        Attention(num_kv_heads=8),
        Attention(num_kv_heads=4),
        Attention(num_kv_heads=2),
        LinearMixer(),
        NoOp(),
    ]
    assert ffns(GatedFFN(width=384), SpaceSettings()) == [
        GatedFFN(width=384),
        GatedFFN(width=288),
        GatedFFN(width=192),
        GatedFFN(width=96),
        LinearFFN(),
        NoOp(),
    ]


def test_heads_that_would_not_divide_are_left_out() -> None:
    assert mixers(Attention(num_kv_heads=6), SpaceSettings(kv_head_shares=(0.7, 0.5), has_linear=False)) == [
        Attention(num_kv_heads=6),
        Attention(num_kv_heads=3),
        NoOp(),
    ]


@pytest.mark.parametrize(("width", "multiple"), [(8192, 256), (4096, 256), (384, 32), (176, 16), (172, 4), (5, 1)])
def test_widths_are_rounded_to_a_multiple_that_suits_the_model(width: int, multiple: int) -> None:
    assert width_multiple(width) == multiple
    assert width % multiple == 0


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5])
def test_a_share_that_narrows_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        replace(SpaceSettings(), ffn_width_shares=(0.5, share))
    with pytest.raises(ValueError, match="between 0 and 1"):
        replace(SpaceSettings(), kv_head_shares=(share,))
