"""Decoders of every kind, run by ONNX Runtime and by torch, and how far they differ."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.flavour import FlavourName
from blockwright.compile.session import Decoder
from blockwright.llama import llama
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.synthetic import random_weights
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Format,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Reach,
    Rope,
    Window,
)
from decoders import LLAMA3, every_kind

Weights = dict[str, np.ndarray]
HETEROGENEOUS = every_kind(96, 160, 32)
NO_ATTENTION = (Block(mixer=NoOp(), ffn=GatedFFN(width=64)), Block(mixer=LinearMixer(), ffn=LinearFFN()))
YARN = (("factor", 8.0), ("original_max_position_embeddings", 32.0))


def decoder_model(**changes: object) -> Model:
    model = llama(HETEROGENEOUS, vocab_size=80, hidden_size=64, num_heads=4, head_dim=16, max_positions=1024)
    return replace(model, **changes)


def with_reach(layers: Iterable[Block], *reaches: Reach) -> tuple[Block, ...]:
    """The layers with their attention reaching as far as given, in turn."""
    return tuple(
        replace(block, mixer=replace(block.mixer, reach=reaches[index % len(reaches)]))
        if isinstance(block.mixer, Attention)
        else block
        for index, block in enumerate(layers)
    )


MODELS = {
    "llama": decoder_model(),
    "windows": decoder_model(
        layers=with_reach(HETEROGENEOUS, Window(num_tokens=6), Full(), Full(), Window(num_tokens=3))
    ),
    "untied": decoder_model(has_tied_embeddings=False),
    "biases": decoder_model(has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True),
    "wide heads": decoder_model(head_dim=32),
    "not rotated": decoder_model(head_dim=24),
    "small windows, not rotated": decoder_model(
        head_dim=8,
        has_qkv_bias=True,
        has_output_bias=True,
        has_ffn_bias=True,
        layers=with_reach(HETEROGENEOUS, Window(num_tokens=1), Window(num_tokens=5)),
    ),
    "no attention": decoder_model(layers=NO_ATTENTION),
    "nothing at all": decoder_model(layers=()),
    "linear rope": decoder_model(rope=Rope(theta=1e4, scaling="linear", parameters=(("factor", 4.0),))),
    "llama3 rope": decoder_model(rope=LLAMA3),
    "yarn rope": decoder_model(rope=Rope(theta=1e4, scaling="yarn", parameters=YARN)),
    "yarn rope with its own length": decoder_model(
        rope=Rope(theta=5e5, scaling="yarn", parameters=(*YARN, ("attention_factor", 0.7), ("truncate", 0.0)))
    ),
    "mistral": decoder_model(family="mistral"),
    "mistral window": decoder_model(family="mistral", layers=with_reach(HETEROGENEOUS, Window(num_tokens=6))),
    "qwen2": decoder_model(family="qwen2", has_qkv_bias=True),
    "qwen2 windows": decoder_model(
        family="qwen2",
        has_qkv_bias=True,
        layers=with_reach(HETEROGENEOUS, Full(), Full(), Full(), Window(num_tokens=6)),
    ),
    "qwen3": decoder_model(family="qwen3", has_qk_norm=True, has_tied_embeddings=False, head_dim=32),
    "qwen3, not rotated": decoder_model(family="qwen3", has_qk_norm=True, head_dim=24),
}


def weights_of(model: Model) -> Weights:
    """Large enough that logits differ by whole numbers, and every bias and norm matters."""
    return {n: 8 * array if array.ndim == 2 else array for n, array in random_weights(model, seed=1).items()}


def in_torch(model: Model, weights: Weights) -> PreTrainedModel:
    return load_weights(build_child(model, hf_config(model)), {n: torch.from_numpy(a) for n, a in weights.items()})


def engine_of(
    folder: Path,
    model: Model,
    weights: Weights,
    weights_format: Format | None = FP32,
    num_positions: int = 64,
    flavour: FlavourName = "standard",
) -> Decoder:
    order = EngineOrder(
        model=model,
        weights_format=weights_format,
        num_positions=num_positions,
        session=SessionSettings(num_threads=1, accuracy_level=0),
        built_from="random weights",
        flavour=flavour,
    )
    write_engine(order, weights, folder)
    return Decoder.open(folder)


in_both_flavours = pytest.mark.parametrize("flavour", ["standard", "contrib"])


@dataclass(frozen=True)
class Difference:
    largest: float
    typical: float
    """The root mean square of the worst step."""
    spread: float
    """How much the logits differ among each other: what a difference is to be held against."""


@torch.no_grad()
def largest_difference(decoder: Decoder, child: PreTrainedModel, lengths: list[int], num_steps: int) -> Difference:
    """Between the engine's logits, step after step, and those of one forward over each whole sequence."""
    generator = np.random.default_rng(0)
    vocab_size = decoder.engine.model.vocab_size
    texts = [generator.integers(0, vocab_size, length + num_steps) for length in lengths]
    expected = [child(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy() for ids in texts]
    sequences = decoder.start(len(texts), max(lengths) + num_steps)
    found_BV = sequences.prefill([ids[:length].tolist() for ids, length in zip(texts, lengths, strict=True)])
    differences_SBV: list[np.ndarray] = []
    for step in range(num_steps + 1):
        places = [length + step for length in lengths]
        wanted_BV = np.stack([logits_TV[place - 1] for logits_TV, place in zip(expected, places, strict=True)])
        differences_SBV.append(found_BV - wanted_BV)
        if step < num_steps:
            found_BV = sequences.step(np.array([ids[place] for ids, place in zip(texts, places, strict=True)]))
    return Difference(
        largest=max(float(np.abs(step_BV).max()) for step_BV in differences_SBV),
        typical=max(float(np.sqrt(np.square(step_BV).mean())) for step_BV in differences_SBV),
        spread=float(np.concatenate(expected).std()),
    )
