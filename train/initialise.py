"""First weights of a candidate, taken from the parent's layer (Puzzle, arXiv 2411.19146, appendix A).

Names and shapes are those of the layer's state dict; matrices are (outputs, inputs).
"""

from typing import assert_never

import torch
from torch import Tensor

from blockwright.spec import FFN, Attention, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp

Weights = dict[str, Tensor]


def mixer_weights(parent: Model, layer: Weights, mixer: Mixer) -> Weights:
    """The first weights of a mixer candidate.

    Fewer KV heads are means of the parent's heads that they replace (Ainslie et al. 2023). The linear mixer is
    W_o·W_v with every query head reading its own KV head: what attention does when a token sees itself only.

    Args:
        parent: the parent's spec.
        layer: the state dict of the parent's layer.
        mixer: the candidate.
    """
    match mixer:
        case Attention(num_kv_heads=num_kv_heads):
            attention = {k: v.clone() for k, v in layer.items() if k.startswith(("self_attn.", "input_layernorm."))}
            for name in ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"):
                if f"self_attn.{name}" in attention:
                    heads = attention[f"self_attn.{name}"].unflatten(0, (num_kv_heads, -1, parent.head_dim))
                    attention[f"self_attn.{name}"] = heads.mean(dim=1).flatten(0, 1)
            return attention
        case LinearMixer():
            return _linear_mixer_weights(parent, layer)
        case NoOp():
            return {}
        case _:
            assert_never(mixer)


def ffn_weights(layer: Weights, ffn: FFN, contribution: Tensor) -> Weights:
    """The first weights of an ffn candidate.

    A narrower ffn keeps the channels that contribute most, in their order. The linear ffn is W_down·W_up, the
    gate ignored.

    Args:
        layer: the state dict of the parent's layer.
        ffn: the candidate.
        contribution: of each of the parent's channels; see `channel_contribution`.
    """
    norm = {"post_attention_layernorm.weight": layer["post_attention_layernorm.weight"].clone()}
    up, down = layer["mlp.up_proj.weight"], layer["mlp.down_proj.weight"]
    match ffn:
        case GatedFFN(width=width):
            kept = contribution.topk(width).indices.sort().values
            weights = {f"mlp.{name}.weight": layer[f"mlp.{name}.weight"][kept] for name in ("gate_proj", "up_proj")}
            weights |= {
                f"mlp.{n}.bias": layer[f"mlp.{n}.bias"][kept] for n in ("gate_proj", "up_proj") if _bias(layer, n)
            }
            weights |= {"mlp.down_proj.bias": layer["mlp.down_proj.bias"].clone()} if _bias(layer, "down_proj") else {}
            return norm | weights | {"mlp.down_proj.weight": down[:, kept].clone()}
        case LinearFFN():
            weights = {"mlp.linear_mlp.weight": down @ up}
            if _bias(layer, "down_proj"):
                weights["mlp.linear_mlp.bias"] = down @ layer["mlp.up_proj.bias"] + layer["mlp.down_proj.bias"]
            return norm | weights
        case NoOp():
            return {}
        case _:
            assert_never(ffn)


def channel_contribution(channels_NW: Tensor, down_DW: Tensor) -> Tensor:
    """How much each of W channels adds to the ffn's output: mean over N tokens of |X_i| · ‖W_down[:, i]‖₂."""
    return channels_NW.abs().mean(dim=0) * down_DW.norm(dim=0)


def _linear_mixer_weights(parent: Model, layer: Weights) -> Weights:
    def per_query_head(rows: Tensor) -> Tensor:
        heads = rows.unflatten(0, (-1, parent.head_dim))
        return heads.repeat_interleave(parent.num_heads // heads.shape[0], dim=0).flatten(0, 1)

    output = layer["self_attn.o_proj.weight"]
    weights = {
        "input_layernorm.weight": layer["input_layernorm.weight"].clone(),
        "self_attn.linear_attn.weight": output @ per_query_head(layer["self_attn.v_proj.weight"]),
    }
    if parent.has_qkv_bias or parent.has_output_bias:
        bias = torch.zeros(parent.hidden_size, dtype=output.dtype, device=output.device)
        if parent.has_qkv_bias:
            bias += output @ per_query_head(layer["self_attn.v_proj.bias"])
        if parent.has_output_bias:
            bias += layer["self_attn.o_proj.bias"]
        weights["self_attn.linear_attn.bias"] = bias
    return weights


def _bias(layer: Weights, name: str) -> bool:
    return f"mlp.{name}.bias" in layer
