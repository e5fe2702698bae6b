"""A decoder whose layers differ from each other, on top of transformers' own Llama, Mistral, Qwen2 and Qwen3.

This file travels with every checkpoint that Blockwright writes, so it depends on torch and transformers
alone. Load such a checkpoint with ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``.

Each layer is the parent family's decoder layer, built from a copy of the configuration with that layer's
numbers of KV heads and ffn channels. A part that is replaced by one matrix, or by nothing, is swapped after
that; the layer's own forward is used as it is. ``block_configs`` in config.json says what each layer is, in
the words of NVIDIA's nemotron-nas checkpoints; ``window_length`` is how many tokens a layer's attention sees where
that is less than in the parent, itself included.

In the cache, the first layer with attention takes the place of layer 0, for transformers reads the length of the
sequence there; every other one has its own place. Where ``layer_types`` mixes full and sliding attention,
transformers reads the lengths for each mask from the first place of that type. So layers without attention, whose
places stay empty and whose masks nobody reads, are said to be of the first one's type.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer


class BlockConfig(dict):
    """A part of one layer's configuration: a mapping whose keys are attributes too, as nemotron-nas readers expect."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class LinearAttention(nn.Module):
    """One matrix in place of attention; every token sees itself only."""

    def __init__(self, hidden_size: int, has_bias: bool) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(hidden_size, hidden_size, bias=has_bias)

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.linear_attn(hidden_states), None


class LinearMLP(nn.Module):
    """One matrix in place of the gated ffn."""

    def __init__(self, hidden_size: int, has_bias: bool) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(hidden_size, hidden_size, bias=has_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.linear_mlp(hidden_states)


class NoAttention(nn.Module):
    """No attention: nothing is added to the residual."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(()), None


class NoMLP(nn.Module):
    """No ffn: nothing is added to the residual."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(())


def build_layer(layer_class: type[nn.Module], config: PreTrainedConfig, index: int) -> nn.Module:
    """Builds one decoder layer from the family's layer class and the configuration of the whole model."""
    block = config.block_configs[index]
    layer: Any = layer_class(config.per_layer_config[index], index)
    if block.attention.no_op:
        layer.input_layernorm, layer.self_attn = nn.Identity(), NoAttention()
    elif block.attention.replace_with_linear:
        projections = (layer.self_attn.v_proj, layer.self_attn.o_proj)
        has_bias = any(projection.bias is not None for projection in projections)
        layer.self_attn = LinearAttention(config.hidden_size, has_bias)
    else:
        layer.self_attn.config = config  # the one whose attention implementation users set
        if window := block.attention.get("window_length"):
            layer.self_attn.register_forward_pre_hook(partial(_look_near, window), with_kwargs=True)
    if block.ffn.no_op:
        layer.post_attention_layernorm, layer.mlp = nn.Identity(), NoMLP()
    elif block.ffn.replace_with_linear:
        layer.mlp = LinearMLP(config.hidden_size, layer.mlp.down_proj.bias is not None)
    return layer


def _look_near(window: int, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Narrows the mask of one layer to its own window: transformers knows but one for all layers."""
    implementation = attention.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ValueError(f"layers with windows of their own run with sdpa or eager attention, not {implementation}")
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    num_new, device = hidden_states.shape[1], hidden_states.device
    cache, num_before, length, offset = kwargs.get("past_key_values"), 0, num_new, 0
    if cache is not None:
        num_before = cache.get_seq_length(attention.layer_idx)
        length, offset = cache.get_mask_sizes(num_new, attention.layer_idx)
    queries_T1 = torch.arange(num_before, num_before + num_new, device=device)[:, None]
    keys_S = torch.arange(offset, offset + length, device=device)
    is_near_TS = (keys_S > queries_T1 - window) & (keys_S <= queries_T1)
    mask_BHTS = kwargs.get("attention_mask")
    if mask_BHTS is None and implementation == "sdpa":
        mask_BHTS = is_near_TS[None, None]
    elif mask_BHTS is not None and mask_BHTS.dtype == torch.bool:
        mask_BHTS = mask_BHTS & is_near_TS
    else:
        least = torch.finfo(hidden_states.dtype).min
        mask_BHTS = hidden_states.new_zeros(()) if mask_BHTS is None else mask_BHTS
        mask_BHTS = torch.where(is_near_TS, mask_BHTS, least)
        mask_BHTS = mask_BHTS[None, None] if mask_BHTS.ndim == 2 else mask_BHTS
    return args, kwargs | {"attention_mask": mask_BHTS}


class _ChildConfig(PreTrainedConfig):
    """A parent family's configuration with ``block_configs``; ``per_layer_config`` follows from it."""

    model_type = "nemotron-nas"

    block_configs: list | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.block_configs is None:
            raise ValueError("config.json has no block_configs, so it is no checkpoint of Blockwright's")
        kwargs.pop("per_layer_config", None)
        super().__post_init__(**kwargs)
        self.block_configs = [
            BlockConfig(attention=BlockConfig(block["attention"]), ffn=BlockConfig(block["ffn"]))
            for block in self.block_configs
        ]
        self.per_layer_config = {i: self._overrides(block) for i, block in enumerate(self.block_configs)}
        attends = [block.attention.n_heads_in_group is not None for block in self.block_configs]
        layer_types = getattr(self, "layer_types", None)
        if layer_types and any(attends):
            first = layer_types[attends.index(True)]
            self.layer_types = [
                own if own_attends else first for own, own_attends in zip(layer_types, attends, strict=True)
            ]

    def _overrides(self, block: BlockConfig) -> dict[str, Any]:
        overrides: dict[str, Any] = {}
        if block.attention.n_heads_in_group is not None:
            overrides["num_key_value_heads"] = self.num_attention_heads // block.attention.n_heads_in_group
        if block.ffn.intermediate_size is not None:
            overrides["intermediate_size"] = block.ffn.intermediate_size
        skipped = [name for name, part in (("attention", block.attention), ("mlp", block.ffn)) if part.no_op]
        return overrides | ({"skip": skipped} if skipped else {})


class _ChildModel(PreTrainedModel):
    """Makes a family's causal language model heterogeneous: built with no layers, then given its own."""

    layer_class: type[nn.Module]

    def __init__(self, config: PreTrainedConfig) -> None:
        num_layers = len(config.block_configs)
        per_layer_config = config.per_layer_config
        config.num_hidden_layers = 0
        try:
            super().__init__(config)
        finally:
            config.num_hidden_layers = num_layers
        assert per_layer_config is not None
        self.model.layers = nn.ModuleList(build_layer(self.layer_class, config, i) for i in range(num_layers))
        with_attention: list[Any] = [layer for layer in self.model.layers if hasattr(layer.self_attn, "layer_idx")]
        if with_attention:
            with_attention[0].self_attn.layer_idx = 0
        self.post_init()


class LlamaChildConfig(_ChildConfig, LlamaConfig):
    """Configuration of a child of a Llama."""


class LlamaChildForCausalLM(_ChildModel, LlamaForCausalLM):
    """A child of a Llama."""

    config_class = LlamaChildConfig
    layer_class = LlamaDecoderLayer


class MistralChildConfig(_ChildConfig, MistralConfig):
    """Configuration of a child of a Mistral."""


class MistralChildForCausalLM(_ChildModel, MistralForCausalLM):
    """A child of a Mistral."""

    config_class = MistralChildConfig
    layer_class = MistralDecoderLayer


class Qwen2ChildConfig(_ChildConfig, Qwen2Config):
    """Configuration of a child of a Qwen2."""


class Qwen2ChildForCausalLM(_ChildModel, Qwen2ForCausalLM):
    """A child of a Qwen2."""

    config_class = Qwen2ChildConfig
    layer_class = Qwen2DecoderLayer


class Qwen3ChildConfig(_ChildConfig, Qwen3Config):
    """Configuration of a child of a Qwen3."""


class Qwen3ChildForCausalLM(_ChildModel, Qwen3ForCausalLM):
    """A child of a Qwen3."""

    config_class = Qwen3ChildConfig
    layer_class = Qwen3DecoderLayer
