"""What is said to keep TensorRT from building a layer, against TensorRT-RTX itself."""

import random
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.tensorrt_build import BuildRequest, build_apart
from blockwright.compile.tensorrt_checks import expected_of
from blockwright.compile.tensorrt_engine import flavour_of, token_ranges
from blockwright.compile.tensorrt_package import find_package
from blockwright.compile.tensorrt_stored import Stored, stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.servable import engine_obstacles, obstacles
from blockwright.spec import (
    FFN,
    FP16,
    FP32,
    Attention,
    Block,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Rope,
    Window,
    parse_format,
    stored_as,
    with_format,
)
from tensorrt_here import needs_rtx

SLOTS = 1024
"""So many that a short window's tokens go round in fewer."""
ALONE = (Block(mixer=Attention(num_kv_heads=2), ffn=NoOp()),)
PLAIN = llama(ALONE, hidden_size=64, num_heads=4, head_dim=16, vocab_size=64, max_positions=SLOTS)


def _of(mixer: Mixer, ffn: FFN, mixer_format: str = "fp16", ffn_format: str = "fp16") -> Model:
    """A layer, each part in a format, behind one with plain attention."""
    block = Block(mixer=stored_as(mixer, parse_format(mixer_format)), ffn=stored_as(ffn, parse_format(ffn_format)))
    return replace(with_format(PLAIN, FP16), layers=(with_format(PLAIN, FP16).layers[0], block))


def _with_heads(size: int, num_heads: int = 4) -> Model:
    layers = (Block(mixer=Attention(num_kv_heads=1), ffn=NoOp()),)
    return with_format(replace(PLAIN, layers=layers, num_heads=num_heads, head_dim=size), FP16)


ATTENTION, FFN_96 = Attention(num_kv_heads=2), GatedFFN(width=96)
FINE: dict[str, Model] = {
    "fp16": _of(ATTENTION, FFN_96),
    "int4 in groups that divide": _of(ATTENTION, FFN_96, "int4-g64", "int4-g32"),
    "int4 beside fp16": _of(LinearMixer(), GatedFFN(width=33), "int4-g16"),
    "int4 beside bf16": replace(PLAIN, layers=_of(ATTENTION, LinearFFN(), "bf16", "int4-g64").layers[1:]),
    "a window": _of(replace(ATTENTION, reach=Window(num_tokens=1)), LinearFFN()),
    "no attention": replace(PLAIN, layers=_of(LinearMixer(), NoOp()).layers[1:]),
    "nothing": replace(PLAIN, layers=(Block(mixer=NoOp(), ffn=NoOp()),)),
    "heads of 8": _with_heads(8),
    "heads of 24": _with_heads(24),
    "heads of 256": _with_heads(256),
    "heads of 258": _with_heads(258),
    "a single head of 12": _with_heads(12, num_heads=1),
    "positions scaled by a way that is not known, with no attention": replace(
        _of(NoOp(), FFN_96), rope=Rope(theta=1e4, scaling="dynamic"), layers=_of(NoOp(), FFN_96).layers[1:]
    ),
}
REFUSED: dict[str, tuple[Model, str]] = {
    "fp32": (
        _of(NoOp(), FFN_96, ffn_format="fp32"),
        "layer 1: an ffn in fp32, where TensorRT's attention computes in fp16 or bf16 only",
    ),
    "int8": (
        _of(ATTENTION, NoOp(), "int8-g32"),
        "layer 1: a mixer in int8-g32, which TensorRT multiplies out to fp16",
    ),
    "int4 in groups too large": (
        replace(_of(LinearMixer(), NoOp(), "int4-g256"), hidden_size=256),
        "layer 1: a mixer in int4-g256, which TensorRT does not always keep",
    ),
    "int4 in groups that do not divide the width": (
        _of(NoOp(), FFN_96, ffn_format="int4-g64"),
        "layer 1: an ffn in int4-g64 with 96 inputs, which is no whole number of groups",
    ),
    "int4 in groups that do not divide the hidden size": (
        _of(LinearMixer(), NoOp(), "int4-g128"),
        "layer 1: a mixer in int4-g128 with 64 inputs, which is no whole number of groups",
    ),
    "fp16 and bf16": (_of(ATTENTION, FFN_96, "fp16", "bf16"), "fp16 and bf16 in one network"),
    "heads of 12": (
        _with_heads(12),
        "layer 0: heads of 12 are no multiple of 8, where TensorRT's attention fails",
    ),
    "heads of 254": (
        _with_heads(254),
        "layer 0: heads of 254 are no multiple of 8, where TensorRT's attention fails",
    ),
    "positions scaled by a way that is not known": (
        replace(_with_heads(16), rope=Rope(theta=1e4, scaling="dynamic")),
        "layer 0: a rotary embedding scaled by dynamic is not read, only default, linear, llama3, yarn",
    ),
}


def _compile(model: Model, folder: Path) -> None:
    """As `compile --target tensorrt --plan`, with random weights, for one GPU."""
    package, stored = find_package(("tensorrt_rtx",)), stored_for_tensorrt(model, None)
    flavour = flavour_of("fused", stored, SLOTS)
    onnx.save_model(decoder_graph(stored.model, random_weights(stored.model), SLOTS, flavour), folder / "model.onnx")
    build_apart(_request(stored, folder, package.name), package)


def _request(stored: Stored, folder: Path, name: str) -> BuildRequest:
    return BuildRequest(
        package=name,  # type: ignore[arg-type]
        graph=str(folder / "model.onnx"),
        plan=str(folder / "model.plan"),
        capabilities=("sm89",),
        profiles=token_ranges(SLOTS)[:1],
        most_sequences=2,
        expected=expected_of(stored.model),
        timing_cache=None,
    )


@needs_rtx
@pytest.mark.parametrize("name", FINE)
def test_what_nothing_is_said_to_stand_in_the_way_of_is_built(name: str, tmp_path: Path) -> None:
    assert obstacles(FINE[name], "tensorrt") == []
    _compile(FINE[name], tmp_path)
    assert (tmp_path / "model.plan").stat().st_size > 0


@needs_rtx
@pytest.mark.parametrize("name", REFUSED)
def test_what_something_is_said_to_stand_in_the_way_of_is_refused(name: str, tmp_path: Path) -> None:
    model, reason = REFUSED[name]
    assert obstacles(model, "tensorrt") == [reason]
    with pytest.raises(InputError):
        _compile(model, tmp_path)
    assert not (tmp_path / "model.plan").exists()


def _random_model(seed: int) -> Model:
    """Of everything some, formats that TensorRT does not keep in few places; some of them can be built."""
    draw = random.Random(seed)
    num_heads, size = draw.choice([1, 2, 4]), draw.choice([4, 12, 16, 16, 32, 32])
    plain = draw.choice(["fp16", "bf16"])
    formats = [plain, plain, plain, "int4-g16", "int4-g32", "int4-g64"] + ["int8-g32", "fp32"] * (draw.random() < 0.4)

    def mixer() -> Mixer:
        kv_heads = draw.choice([count for count in (1, 2, 4) if num_heads % count == 0])
        reach = draw.choice([Full(), Full(), Window(num_tokens=3), Window(num_tokens=600)])
        return draw.choice([Attention(num_kv_heads=kv_heads, reach=reach)] * 3 + [LinearMixer(), NoOp()])

    def layer() -> Block:
        ffn: FFN = draw.choice([GatedFFN(width=64), GatedFFN(width=40), LinearFFN(), NoOp()])
        one, other = (parse_format(draw.choice(formats)) for _ in range(2))
        return Block(mixer=stored_as(mixer(), one), ffn=stored_as(ffn, other))

    return replace(
        PLAIN,
        hidden_size=draw.choice([64, 96]),
        num_heads=num_heads,
        head_dim=size,
        has_qk_norm=draw.random() < 0.3,
        has_qkv_bias=draw.random() < 0.3,
        has_tied_embeddings=draw.random() < 0.5,
        layers=tuple(layer() for _ in range(draw.randint(1, 5))),
    )


SEEDS = range(24)


@needs_rtx
@pytest.mark.parametrize("seed", SEEDS)
def test_tensorrt_builds_exactly_what_it_is_said_to_accept(seed: int, tmp_path: Path) -> None:
    model = _random_model(seed)
    if obstacles(model, "tensorrt"):
        with pytest.raises(InputError):
            _compile(model, tmp_path)
    else:
        _compile(model, tmp_path)


def test_some_of_those_models_are_accepted_and_each_obstacle_is_met() -> None:
    found = [obstacles(_random_model(seed), "tensorrt") for seed in SEEDS]
    assert 5 < sum(not reasons for reasons in found) < 19
    words = " ".join(reason for reasons in found for reason in reasons)
    for part in ("in fp32", "in int8-g32", "no whole number of groups", "heads of 12"):
        assert part in words


def test_a_checkpoint_is_not_judged_by_formats_that_compiling_chooses() -> None:
    for weights in (FP32, parse_format("int8"), parse_format("int4-g256")):
        model = with_format(_of(ATTENTION, FFN_96), weights)
        assert obstacles(model, "tensorrt"), weights
        assert engine_obstacles(model)["tensorrt"] == [], weights
    assert engine_obstacles(with_format(_with_heads(12), FP32))["tensorrt"] == [REFUSED["heads of 12"][1]]
