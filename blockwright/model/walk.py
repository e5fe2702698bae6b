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

    Args:
        model: the decoder.
        segments_BT: numbers the documents within each window of the one batch that this walk is for; a token then sees
            only its own document, and positions begin anew with each. None: one document per window, any batch.
    """

    def __init__(self, model: PreTrainedModel, segments_BT: Tensor | None = None) -> None:
        self.model = model
        self.layers: nn.ModuleList = model.model.layers
        self._positions_BT = None if segments_BT is None else positions_within(segments_BT)
        self._masks: dict[bool, Tensor | None] = {}

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
        positions_BT = self._positions_BT
        if positions_BT is None:
            positions_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        layer_types = getattr(self.model.config, "layer_types", None)
        window = getattr(self.model.config, "sliding_window", None)
        is_sliding = layer_types[index] == "sliding_attention" if layer_types else window is not None
        return {
            "attention_mask": self._mask(is_sliding, x_BTD, positions_BT),
            "position_ids": positions_BT,
            "position_embeddings": self.model.model.rotary_emb(x_BTD, positions_BT),
        }

    def _mask(self, is_sliding: bool, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        """What each token may see; where positions begin anew, transformers takes it that a document does."""
        if self._positions_BT is not None and is_sliding in self._masks:
            return self._masks[is_sliding]
        create_mask = create_sliding_window_causal_mask if is_sliding else create_causal_mask
        mask = create_mask(
            config=self.model.config,
            inputs_embeds=x_BTD,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions_BT,
        )
        if self._positions_BT is not None:
            self._masks[is_sliding] = mask
        return mask

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The logits from what leaves the last layer, z_BTV."""
        return self.model.lm_head(self.model.model.norm(x_BTD))


def positions_within(segments_BT: Tensor) -> Tensor:
    """The place of each token in its own segment, a run of equal numbers."""
    places_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return places_T - (places_T * begins_BT).cummax(dim=1).values
