"""How many slots caches have."""

from dataclasses import replace

import pytest

from blockwright.compile.slots import PREFILL_CHUNK, caches_of
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
        (_model(Full()), 4096, [4096]),
        (_model(Full(), SHORT), 4096, [4096, 2 * C]),
        (_model(SHORT, Full()), 4096, [2 * C, 4096]),
        (_model(Window(num_tokens=1)), 4096, [C]),
        (_model(SHORT, MIDDLE), 4096, [3 * C, 3 * C]),
        (_model(LONG, SHORT, LONG), 4096, [5 * C, 5 * C, 5 * C]),
        (_model(SHORT, LONG, kv_heads=(4, 1)), 4096, [2 * C, 4096]),
        (_model(SHORT, LONG), 5 * C, [2 * C, 5 * C]),
        (_model(Full(), SHORT), 2 * C, [2 * C, 2 * C]),
        (_model(Full(), SHORT), 100, [100, 100]),
        (_model(SHORT, SHORT, SHORT), 4096, [2 * C, 2 * C, 2 * C]),
        (_model(SHORT, SHORT, Full()), 4096, [2 * C, 2 * C, 4096]),
        (_model(*(SHORT,) * 5, Full(), SHORT), 4096, [*(2 * C,) * 5, 4096, 2 * C]),
        (_model(Full(), SHORT, SHORT, Full()), 4096, [4096, 2 * C, 2 * C, 4096]),
    ],
)
def test_windows_share_the_round_that_makes_caches_smallest(model: Model, slots: int, expected: list[int]) -> None:
    held = caches_of(model, slots)
    assert [each.slots for each in held.values()] == expected
    assert list(held) == list(range(len(expected)))
    for (index, each), block in zip(held.items(), model.layers, strict=True):
        assert isinstance(block.mixer, Attention)
        assert (each.reach, each.goes_round) == (block.mixer.reach, expected[index] < slots)


def test_a_number_that_is_known_when_it_runs_lets_nothing_go_round() -> None:
    held = caches_of(_model(SHORT, Full()), "slots")
    assert {(each.slots, each.goes_round) for each in held.values()} == {("slots", False)}


def test_layers_without_attention_hold_nothing() -> None:
    none = Block(mixer=NoOp(), ffn=NoOp())
    model = _model(SHORT)
    assert list(caches_of(replace(model, layers=(none, *model.layers)), 4096)) == [1]
    assert caches_of(replace(model, layers=(none,)), 4096) == {}
