"""Times blocks and whole models in torch: eager, fp32, on the CPU, as transformers runs them. Twin of `onnx_blocks`.

Blocks are measured as slopes (see `bench`) of whole models, which transformers has no smaller runnable part than;
their embedding and head fall out.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from blockwright.hw_profiles.profile import Point
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.bench import Bench, Run, sample_slopes, stacks_of
from blockwright.profiler.clock import Samples, sample_in_turn
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FFN, Attention, Family, GatedFFN, Mixer, Model, Window

_CONFIGS: dict[Family, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


def sample_variants(bench: Bench, variants: Sequence[Mixer | FFN], point: Point) -> list[Samples]:
    """Times that one copy of each mixer or ffn adds to a model, all in turn."""
    with _threads(bench.session.num_threads):
        return sample_slopes(bench, [[_model_run(stack, point) for stack in stacks_of(bench, v)] for v in variants])


def sample_models(bench: Bench, models: list[Model], point: Point) -> list[Samples]:
    """Times of one step or one prefill chunk of whole models, choosing the next token included, in turn."""
    with _threads(bench.session.num_threads):
        runs = [_model_run(model, point) for model in models]
        return sample_in_turn(runs, bench.effort, bench.session.num_threads)


def build_random(model: Model) -> PreTrainedModel:
    """The model in torch, with random weights."""
    weights = {name: torch.from_numpy(array) for name, array in random_weights(model).items()}
    return load_weights(build_child(model, hf_config(model)), weights)


def hf_config(model: Model) -> PreTrainedConfig:
    """A configuration of the model's family with what its layers share: what `build_child` takes for the parent's.

    `spec_of` reads the same model from it, where all layers are alike. Families have one window at most, and without
    layer types it is that of all layers: the widest goes in where it suits, and `build_child` narrows the others.
    """
    mixers = [block.mixer for block in model.layers if isinstance(block.mixer, Attention)]
    widths = [block.ffn.width for block in model.layers if isinstance(block.ffn, GatedFFN)]
    settings: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": max(widths, default=model.hidden_size),
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": max((mixer.num_kv_heads for mixer in mixers), default=model.num_heads),
        "head_dim": model.head_dim,
        "hidden_act": model.activation,
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_theta": model.rope.theta, "rope_type": model.rope.scaling}
        | dict(model.rope.parameters),
        "tie_word_embeddings": model.has_tied_embeddings,
        "attention_bias": model.has_output_bias,
        "mlp_bias": model.has_ffn_bias,
        "sliding_window": None,
    }
    windows = [mixer.reach.num_tokens for mixer in mixers if isinstance(mixer.reach, Window)]
    has_layer_types = model.family in ("qwen2", "qwen3")
    if windows and (has_layer_types or len(windows) == len(mixers)):
        settings |= {"sliding_window": max(windows), "use_sliding_window": True}
        if has_layer_types:
            settings["layer_types"] = [_layer_type(block.mixer) for block in model.layers]
    return _CONFIGS[model.family](**settings)


def _layer_type(mixer: Mixer) -> str:
    is_sliding = isinstance(mixer, Attention) and isinstance(mixer.reach, Window)
    return "sliding_attention" if is_sliding else "full_attention"


def _model_run(model: Model, point: Point) -> Run:
    """One token over a cache of all slots but one, or a prompt into an empty cache."""
    child = build_random(model)
    num_cached = 0 if point.new_tokens > 1 else point.slots - 1
    full = DynamicCache(config=child.config)
    ids_BT = torch.arange(num_cached + point.new_tokens).expand(point.batch, -1) % model.vocab_size
    if num_cached:
        _next_ids(child, ids_BT[:, :num_cached], full)
    return lambda: _next_ids(child, ids_BT[:, num_cached:], _same_again(full))


@torch.inference_mode()
def _next_ids(child: PreTrainedModel, ids_BT: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    return child(ids_BT, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)


def _same_again(cache: DynamicCache) -> DynamicCache:
    """A cache that can be written to while the first stays: layers join new keys to old ones in new tensors."""
    again = copy.copy(cache)
    again.layers = [copy.copy(layer) for layer in cache.layers]
    return again


@contextlib.contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
