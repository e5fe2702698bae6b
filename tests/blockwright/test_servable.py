"""What keeps an engine from loading a child, one example for each obstacle."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.servable import Engine, engine_obstacles, ffn_mult_of, obstacles
from blockwright.spec import (
    FFN,
    Attention,
    Block,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Rope,
    Window,
)
from plain_child import PLAIN, YARN

OTHERS: set[Engine] = {"vllm", "sglang", "tensorrt-llm", "llama.cpp"}
OURS: set[Engine] = {"onnxruntime-genai", "tensorrt"}
"""Of the engines that are asked for, those that load the graph that we write."""


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
        replace(PLAIN, layers=(Block(mixer=NoOp(), ffn=GatedFFN(width=256)),)),
        _with_block(2, Attention(num_kv_heads=2, reach=Window(num_tokens=8)), GatedFFN(width=256)),
    ],
)
def test_a_shape_that_nemotron_nas_has_no_words_for_blocks_all_others(model: Model) -> None:
    assert _blocked(model) == OTHERS


@pytest.mark.parametrize(
    "changes", [{"has_qkv_bias": True}, {"has_output_bias": True}, {"has_ffn_bias": True}, {"head_dim": 32}]
)
def test_gguf_has_words_for_biases_and_sizes_of_heads(changes: dict) -> None:
    assert _blocked(replace(PLAIN, **changes)) == OTHERS - {"llama.cpp"}


def test_a_linear_mixer_loses_its_bias_in_llama_cpp() -> None:
    for changes, found in (({}, []), ({"has_output_bias": True}, ["layer 1: the bias of a linear mixer is dropped"])):
        model = replace(_with_block(1, LinearMixer(), GatedFFN(width=256)), **changes)
        assert obstacles(model, "llama.cpp") == found


@pytest.mark.parametrize(
    ("mixer", "ffn", "index", "engines"),
    [
        (LinearMixer(), GatedFFN(width=256), 1, {"vllm", "sglang"}),
        (Attention(num_kv_heads=2), LinearFFN(), 1, {"vllm", "sglang", "llama.cpp"}),
        (NoOp(), GatedFFN(width=256), 0, {"vllm", "sglang", "llama.cpp"}),
        (NoOp(), NoOp(), 0, set()),
        (Attention(num_kv_heads=2), GatedFFN(width=250), 1, {"sglang", "tensorrt-llm"}),
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


def _vllm_forward(model: Model) -> None:
    """The residual's way through the loaders of vLLM and SGLang; raises where theirs does."""
    residual: str | None = None
    for block in model.layers:
        if isinstance(block.mixer, Attention):
            residual = "hidden states"  # a norm without a residual is given one here
        if not isinstance(block.ffn, NoOp) and residual is None:
            raise TypeError("one tensor, where hidden states and residual are expected")
    if residual is None:
        raise TypeError("one tensor from the last norm")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_residual_must_be_set_by_attention_before_any_ffn(engine: Engine) -> None:
    parts = itertools.product([Attention(num_kv_heads=2), NoOp()], [GatedFFN(width=256), NoOp()])
    blocks = [Block(mixer=mixer, ffn=ffn) for mixer, ffn in parts]
    num_loaded = 0
    for layers in itertools.product(blocks, repeat=4):
        model = replace(PLAIN, layers=layers)
        try:
            _vllm_forward(model)
        except TypeError:
            assert obstacles(model, engine), layers
        else:
            assert obstacles(model, engine) == [], layers
            num_loaded += 1
    assert num_loaded == 2 * (4**3 + 4**2 + 4 + 1)  # attention first, in the first layer that is not removed


def test_each_ffn_before_the_first_attention_is_named() -> None:
    nothing, alone = Block(mixer=NoOp(), ffn=NoOp()), Block(mixer=NoOp(), ffn=GatedFFN(width=256))
    model = replace(PLAIN, layers=(nothing, alone, nothing, alone, PLAIN.layers[0], alone))
    words = "an ffn before the first attention breaks the residual"
    assert engine_obstacles(model)["vllm"] == [f"layer 1: {words}", f"layer 3: {words}"]
    assert _blocked(model) == {"vllm", "sglang", "llama.cpp"}


@pytest.mark.parametrize(
    ("rope", "engines"),
    [
        (Rope(theta=1e4), set()),
        (Rope(theta=5e5), set()),
        (Rope(theta=1e4, scaling="linear", parameters=(("factor", 2.0),)), set()),
        (Rope(theta=5e5, scaling="llama3", parameters=(("factor", 8.0),)), set()),
        (Rope(theta=1e4, scaling="yarn", parameters=YARN), set()),
        (Rope(theta=1e4, scaling="yarn", parameters=(("beta_fast", 16.0), *YARN)), {"llama.cpp"}),
        (Rope(theta=1e4, scaling="yarn", parameters=(("truncate", 0.0), *YARN)), {"llama.cpp", "tensorrt-llm"}),
        (Rope(theta=1e4, scaling="yarn", parameters=(("mscale", 1.0), *YARN)), OTHERS - {"sglang"}),
        (Rope(theta=1e4, scaling="yarn", parameters=(("attention_factor", 1.0), *YARN)), OTHERS),
        (Rope(theta=1e4, scaling="dynamic", parameters=(("factor", 2.0),)), OTHERS | OURS),
        (Rope(theta=1e4, scaling="longrope"), OTHERS | OURS),
    ],
)
def test_a_rotary_embedding_stops_the_engines_that_compute_another(rope: Rope, engines: set[Engine]) -> None:
    assert _blocked(replace(PLAIN, rope=rope)) == engines


def test_what_is_wrong_with_a_rotary_embedding_is_said() -> None:
    def said(rope: Rope, engine: Engine) -> list[str]:
        return obstacles(replace(PLAIN, rope=rope), engine)

    assert said(Rope(theta=1e4, scaling="dynamic"), "vllm") == [
        "a rotary embedding scaled by dynamic is not read, only default, linear, llama3, yarn"
    ]
    assert said(Rope(theta=1e4, scaling="yarn", parameters=(("attention_factor", 1.0),)), "sglang") == [
        "its rotary embedding does not read attention_factor of yarn"
    ]
    assert said(Rope(theta=1e4, scaling="yarn", parameters=(("beta_fast", 16.0),)), "llama.cpp") == [
        "its rotary embedding does not read beta_fast of yarn"
    ]
