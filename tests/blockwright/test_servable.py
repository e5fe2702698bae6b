"""What keeps an engine from loading a child, one example for each obstacle."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.servable import Engine, engine_obstacles, ffn_mult_of
from blockwright.spec import FFN, Attention, Block, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp, Rope, Window

PLAIN = Model(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=128,
    norm_eps=1e-5,
    rope=Rope(theta=1e4),
    activation="silu",
    has_tied_embeddings=True,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=256)),) * 3,
)
OTHERS: set[Engine] = {"vllm", "sglang", "tensorrt-llm", "llama.cpp"}


def _blocked(model: Model) -> set[Engine]:
    obstacles = engine_obstacles(model)
    assert obstacles["transformers"] == []
    return {engine for engine, reasons in obstacles.items() if reasons}


def _with_block(index: int, mixer: Mixer, ffn: FFN) -> Model:
    layers = list(PLAIN.layers)
    layers[index] = Block(mixer=mixer, ffn=ffn)
    return replace(PLAIN, layers=tuple(layers))


def test_every_engine_loads_plain_layers_of_different_shape() -> None:
    assert _blocked(_with_block(1, Attention(num_kv_heads=1), GatedFFN(width=512))) == set()
    assert _blocked(_with_block(1, NoOp(), GatedFFN(width=256))) == set()


@pytest.mark.parametrize(
    "model",
    [
        replace(PLAIN, has_qk_norm=True),
        replace(PLAIN, has_qkv_bias=True),
        replace(PLAIN, has_output_bias=True),
        replace(PLAIN, has_ffn_bias=True),
        replace(PLAIN, head_dim=32),
        replace(PLAIN, layers=(Block(mixer=NoOp(), ffn=GatedFFN(width=256)),)),
        _with_block(2, Attention(num_kv_heads=2, reach=Window(num_tokens=8)), GatedFFN(width=256)),
    ],
)
def test_a_shape_that_nemotron_nas_has_no_words_for_blocks_all_others(model: Model) -> None:
    assert _blocked(model) == OTHERS


@pytest.mark.parametrize(
    ("mixer", "ffn", "index", "engines"),
    [
        (LinearMixer(), GatedFFN(width=256), 1, {"vllm", "sglang"}),
        (Attention(num_kv_heads=2), LinearFFN(), 1, {"vllm", "sglang", "llama.cpp"}),
        (NoOp(), GatedFFN(width=256), 0, {"vllm", "sglang"}),
        (NoOp(), NoOp(), 0, set()),
        (Attention(num_kv_heads=2), GatedFFN(width=250), 1, {"sglang", "tensorrt-llm", "llama.cpp"}),
        (Attention(num_kv_heads=2), NoOp(), 1, {"llama.cpp"}),
    ],
)
def test_a_block_stops_the_engines_that_cannot_read_it(
    mixer: Mixer, ffn: FFN, index: int, engines: set[Engine]
) -> None:
    model = _with_block(index, mixer, ffn)
    assert _blocked(model) == engines
    for engine in engines:
        assert all(reason.startswith(f"layer {index}: ") for reason in engine_obstacles(model)[engine])


@given(hidden_size=st.integers(8, 20_000), multiple=st.integers(1, 200))
def test_readers_get_every_multiple_of_256_back(hidden_size: int, multiple: int) -> None:
    ffn_mult = ffn_mult_of(hidden_size, 256 * multiple)
    assert ffn_mult is not None
    intermediate = int(2 * ffn_mult * hidden_size / 3)  # as vLLM's _ffn_mult_to_intermediate_size
    assert intermediate + (-intermediate) % 256 == 256 * multiple


@given(hidden_size=st.integers(8, 20_000), width=st.integers(1, 50_000).filter(lambda width: width % 256))
def test_no_multiplier_is_given_for_widths_that_readers_would_round(hidden_size: int, width: int) -> None:
    assert ffn_mult_of(hidden_size, width) is None
