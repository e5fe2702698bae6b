"""Children of every family and kind of block, without training."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from blockwright.model.child import (
    build_child,
    load_weights,
)
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Window

Config = Callable[..., PreTrainedConfig]
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
PARENTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama": ("llama", {}),
    "llama with biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 4}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 with windows in the upper half": ("qwen2", SLIDING),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases and windows": ("qwen3", SLIDING | {"attention_bias": True}),
}
IDS_BT = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))  # 0 is what pads


def random_child(spec: Model, config: PreTrainedConfig) -> PreTrainedModel:
    model = build_child(spec, config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3 + (tensor.ndim == 1)
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and spec.has_tied_embeddings)
    }
    return load_weights(model, weights)


def with_blocks(spec: Model, *blocks: Block) -> Model:
    """The spec with other blocks; attention keeps the reach that the parent has in that layer."""
    kept = []
    for own, block in zip(spec.layers, blocks, strict=True):
        assert isinstance(own.mixer, Attention)
        is_attention = isinstance(block.mixer, Attention)
        kept.append(replace(block, mixer=replace(block.mixer, reach=own.mixer.reach)) if is_attention else block)
    return replace(spec, layers=tuple(kept))


def heterogeneous(spec: Model) -> Model:
    return with_blocks(
        spec,
        Block(mixer=NoOp(), ffn=GatedFFN(width=20)),
        Block(mixer=Attention(num_kv_heads=1), ffn=NoOp()),
        Block(mixer=LinearMixer(), ffn=LinearFFN()),
        Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=48)),
    )


def with_windows(spec: Model) -> Model:
    """The heterogeneous spec, whose attention sees three and two tokens in layers where the parent's sees more."""
    layers = list(heterogeneous(spec).layers)
    for index, num_tokens in ((1, 3), (3, 2)):
        mixer = layers[index].mixer
        assert isinstance(mixer, Attention)
        layers[index] = replace(layers[index], mixer=replace(mixer, reach=Window(num_tokens=num_tokens)))
    return replace(spec, layers=tuple(layers))


def generate_greedily(model: PreTrainedModel, ids_BT: Tensor, use_cache: bool) -> Tensor:
    return model.generate(  # pyright: ignore[reportCallIssue]
        ids_BT, max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=0
    )
