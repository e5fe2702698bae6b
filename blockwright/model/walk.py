"""A decoder run one layer at a time, so that what enters a layer can be kept and fed to other layers.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask


class Walk:
    """The steps of a decoder's forward, for whole windows without padding or cache.

    Running `embed`, every layer in order through `layer`, then `logits` is the model's own forward, operation
    for operation; `feed` after `mix` is `layer`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layers: nn.ModuleList = model.model.layers

    def embed(self, ids_BT: Tensor) -> Tensor:
        """The hidden state that enters the first layer, x_BTD."""
        return self.model.model.embed_tokens(ids_BT)

    def layer(self, index: int, x_BTD: Tensor, replacement: nn.Module | None = None) -> Tensor:
        """Runs one layer, or another module in its place, on the hidden state that enters it."""
        module = self.layers[index] if replacement is None else replacement
        return module(x_BTD, **self.context(index, x_BTD))

    def mix(self, index: int, x_BTD: Tensor) -> Tensor:
        """The hidden state between a layer's mixer and its ffn."""
        layer: Any = self.layers[index]
        mixed_BTD, _ = layer.self_attn(hidden_states=layer.input_layernorm(x_BTD), **self.context(index, x_BTD))
        return x_BTD + mixed_BTD

    def feed(self, index: int, mid_BTD: Tensor, replacement: nn.Module | None = None) -> Tensor:
        """What leaves a layer, or another module in its place, from the state between its mixer and its ffn."""
        layer: Any = self.layers[index] if replacement is None else replacement
        return mid_BTD + layer.mlp(layer.post_attention_layernorm(mid_BTD))

    def context(self, index: int, x_BTD: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor] | None]:
        """What a layer, or its attention alone, is given beside the hidden state: positions and mask."""
        positions = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        layer_types = getattr(self.model.config, "layer_types", None)
        window = getattr(self.model.config, "sliding_window", None)
        is_sliding = layer_types[index] == "sliding_attention" if layer_types else window is not None
        create_mask = create_sliding_window_causal_mask if is_sliding else create_causal_mask
        mask = create_mask(
            config=self.model.config,
            inputs_embeds=x_BTD,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        return {
            "attention_mask": mask,
            "position_ids": positions,
            "position_embeddings": self.model.model.rotary_emb(x_BTD, positions),
        }

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The logits from what leaves the last layer, z_BTV."""
        return self.model.lm_head(self.model.model.norm(x_BTD))
