"""How many slots caches have."""

import pytest

from blockwright.compile.slots import PREFILL_CHUNK, slots_by_reach
from blockwright.llama import llama
from blockwright.spec import Attention, Block, Full, Model, NoOp, Reach, Window


def _model(*reaches: Reach, kv_heads: tuple[int, ...] = ()) -> Model:
    heads = kv_heads or (1,) * len(reaches)
    layers = tuple(
        Block(mixer=Attention(num_kv_heads=count, reach=reach), ffn=NoOp())
        for reach, count in zip(reaches, heads, strict=True)
    )
    return llama(layers, hidden_size=64, num_heads=4, head_dim=16, vocab_size=8, max_positions=64)


SHORT, MIDDLE, LONG = Window(num_tokens=9), Window(num_tokens=600), Window(num_tokens=2000)
C = PREFILL_CHUNK


@pytest.mark.parametrize(
    ("model", "slots", "expected"),
    [
        (_model(Full()), 4096, {Full(): 4096}),
        (_model(Full(), SHORT), 4096, {Full(): 4096, SHORT: 2 * C}),
        (_model(Window(num_tokens=1)), 4096, {Window(num_tokens=1): C}),
        (_model(SHORT, MIDDLE), 4096, {SHORT: 3 * C, MIDDLE: 3 * C}),
        (_model(SHORT, LONG), 4096, {SHORT: 5 * C, LONG: 5 * C}),
        (_model(SHORT, LONG, kv_heads=(4, 1)), 4096, {SHORT: 2 * C, LONG: 4096}),
        (_model(SHORT, LONG), 5 * C, {SHORT: 2 * C, LONG: 5 * C}),
        (_model(Full(), SHORT), 2 * C, {Full(): 2 * C, SHORT: 2 * C}),
        (_model(Full(), SHORT), 100, {Full(): 100, SHORT: 100}),
    ],
)
def test_windows_share_the_round_that_makes_caches_smallest(
    model: Model, slots: int, expected: dict[Reach, int]
) -> None:
    assert slots_by_reach(model, slots) == expected


def test_a_model_without_attention_has_no_caches() -> None:
    assert slots_by_reach(llama((), hidden_size=64, num_heads=4, head_dim=16, vocab_size=8, max_positions=64), 64) == {}
