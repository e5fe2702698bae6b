"""What is said to keep our own engine from being built, against building it."""

import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.session import Decoder
from blockwright.errors import InputError
from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
from blockwright.pipeline.recipe import check_formats
from blockwright.profiler.synthetic import random_weights
from blockwright.servable import STORABLE, obstacles
from blockwright.spec import (
    FFN,
    FP16,
    FP32,
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Rope,
    Window,
    stored_as,
)
from plain_child import PLAIN, YARN

FORMATS = (FP32, FP16, Format(name="int8", group_size=32), Format(name="int4", group_size=32), Format(name="bf16"))
ROPES = (
    Rope(theta=1e4),
    Rope(theta=1e4, scaling="linear", parameters=(("factor", 2.0),)),
    Rope(
        theta=5e5,
        scaling="llama3",
        parameters=(
            ("factor", 8.0),
            ("high_freq_factor", 4.0),
            ("low_freq_factor", 1.0),
            ("original_max_position_embeddings", 32.0),
        ),
    ),
    Rope(theta=1e4, scaling="yarn", parameters=YARN),
    Rope(theta=1e4, scaling="dynamic", parameters=(("factor", 2.0),)),
)


def _random_model(seed: int) -> Model:
    """Of everything some; about half of them can be compiled."""
    draw = random.Random(seed)
    mixers: list[Mixer] = [Attention(num_kv_heads=2), LinearMixer(), NoOp()]
    mixers.append(Attention(num_kv_heads=1, reach=Window(num_tokens=3)))
    ffns: list[FFN] = [GatedFFN(width=96), GatedFFN(width=40), LinearFFN(), NoOp()]
    formats = FORMATS if draw.random() < 0.5 else FORMATS[:-1]
    layers = tuple(
        Block(
            mixer=stored_as(draw.choice(mixers), draw.choice(formats)),
            ffn=stored_as(draw.choice(ffns), draw.choice(formats)),
        )
        for _ in range(draw.randint(1, 3))
    )
    return replace(
        PLAIN,
        rope=draw.choice(ROPES),
        head_dim=draw.choice([16, 32]),
        has_qk_norm=draw.random() < 0.5,
        has_qkv_bias=draw.random() < 0.5,
        has_tied_embeddings=draw.random() < 0.5,
        embedding_weights=draw.choice(formats),
        head_weights=draw.choice([None, *formats]),
        layers=layers,
    )


def _compile(model: Model, folder: Path) -> np.ndarray:
    """As `compile_checkpoint` with a plan, with random weights; the first logits."""
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    formats = {part.weights for part in parts if not isinstance(part, NoOp)}
    formats |= {model.embedding_weights, model.head_format}
    check_formats("plan: child", sorted(map(str, formats)), STORABLE)
    order = EngineOrder(
        model=model, weights_format=None, num_positions=16, session=SessionSettings(num_threads=1), built_from="random"
    )
    write_engine(order, random_weights(model), folder)
    return Decoder.open(folder).start(1, 8).prefill([[1, 2, 3, 4]])


@pytest.mark.parametrize("seed", range(40))
def test_ours_is_built_from_exactly_what_it_is_said_to_accept(seed: int, tmp_path: Path) -> None:
    model = _random_model(seed)
    if obstacles(model, "ours"):
        with pytest.raises(InputError):
            _compile(model, tmp_path)
    else:
        assert np.isfinite(_compile(model, tmp_path)).all()


def test_some_of_those_models_are_accepted_and_each_obstacle_is_met() -> None:
    found = [obstacles(_random_model(seed), "ours") for seed in range(40)]
    words = " ".join(itertools.chain(*found))
    assert 10 < sum(not reasons for reasons in found) < 30
    for part in ("a mixer in bf16", "an ffn in bf16", "the embedding in bf16", "the head in bf16", "by dynamic"):
        assert part in words


def test_ours_reads_no_positions_where_there_is_no_attention(tmp_path: Path) -> None:
    model = replace(PLAIN, rope=ROPES[-1], layers=(Block(mixer=NoOp(), ffn=GatedFFN(width=96)),))
    assert obstacles(model, "ours") == []
    assert np.isfinite(_compile(model, tmp_path)).all()
    attending = replace(model, layers=PLAIN.layers[:1])
    words = "layer 0: a rotary embedding scaled by dynamic is not read, only default, linear, llama3, yarn"
    assert obstacles(attending, "ours") == [words]


def test_another_activation_stops_ours_as_it_stops_compile(small_parent: Path, tmp_path: Path) -> None:
    assert obstacles(replace(PLAIN, activation="gelu"), "ours") == ["its loader has no other activation than SiLU"]
    shutil.copytree(small_parent, tmp_path / "parent")
    config = tmp_path / "parent" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "gelu"}))
    with pytest.raises(InputError, match="hidden_act"):
        compile_checkpoint(str(tmp_path / "parent"), CompileOrder(format="fp32", threads=1), tmp_path / "engine")
