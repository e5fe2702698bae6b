"""First weights of a candidate, taken from the parent's layer (Puzzle, arXiv 2411.19146, appendix A).

Some ways need no more than the parent's weights, others what the parent does on text: see `train/importance.py`.
`benchmarks/train/initialise.py` compares them.

Names and shapes are those of the layer's state dict; matrices are (outputs, inputs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never, get_args

import torch
from torch import Tensor

from blockwright.errors import InputError
from blockwright.spec import FFN, Attention, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp
from blockwright.train.importance import LayerSums, Wanted, fitted_down, iterative_ranking, joint_losses

Weights = dict[str, Tensor]
Channels = Literal["contribution", "iterative", "fitted"]
KvHeads = Literal["mean", "first", "importance"]
Linear = Literal["product", "least-squares"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSettings:
    """How candidates begin; by default as published, but where benchmarks/results/initialise_* found another way better
    beyond doubt: of KV heads ``importance`` has the smaller mean error, with an interval that reaches 1.009."""

    channels: Channels = "fitted"
    """Which channels a narrower ffn keeps: those that contribute most each by itself, or those that are left when a
    few at a time are removed; ``fitted`` keeps the latter and fits the last matrix to them."""
    kv_heads: KvHeads = "mean"
    """What takes the place of a group of KV heads: their mean, the first, or the one with the largest share."""
    linear: Linear = "least-squares"
    """The matrix in place of a part: the product of two of the parent's, or the one with the least squared error."""
    ridge: float = 1e-4
    """Of least squares, as a share of the inputs' mean square."""

    def __post_init__(self) -> None:
        for name, allowed in (("channels", Channels), ("kv_heads", KvHeads), ("linear", Linear)):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(
                    f"init.{name}",
                    got=repr(getattr(self, name)),
                    expected="one of " + ", ".join(get_args(allowed)),
                    remedy="Correct the value.",
                )
        if not 0 < self.ridge < 1:
            raise InputError("init.ridge", got=self.ridge, expected="between 0 and 1", remedy="Correct the value.")

    def wanted(self) -> Wanted:
        """What has to be summed over text for this."""
        return Wanted(
            moments=self.channels != "contribution",
            kv_shares=self.kv_heads == "importance",
            linear=self.linear == "least-squares",
        )


AS_PUBLISHED = InitSettings(channels="contribution", kv_heads="mean", linear="product")
"""Puzzle's ways, which need no text but to rank channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What text has shown of one layer of the parent: what `ffn_weights` and `mixer_weights` begin from."""

    ranking_W: Tensor
    """Of the ffn's channels: the highest are kept."""
    kv_shares_H: Tensor | None = None
    linear_mixer: Weights | None = None
    linear_ffn: Weights | None = None
    down_DK: dict[int, Tensor] | None = None
    """The fitted last matrix of each narrower ffn, by its width."""

    def tensors(self) -> Weights:
        """All of it by name, to be written."""
        found = {"ranking": self.ranking_W, "kv_shares": self.kv_shares_H}
        for prefix, weights in (("mixer", self.linear_mixer), ("ffn", self.linear_ffn), ("down", self.down_DK)):
            found |= {f"{prefix}.{name}": tensor for name, tensor in (weights or {}).items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def seen_from(tensors: Weights) -> Seen:
    """Reads what `Seen.tensors` gave."""

    def below(prefix: str) -> Weights | None:
        return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)} or None

    return Seen(
        ranking_W=tensors["ranking"],
        kv_shares_H=tensors.get("kv_shares"),
        linear_mixer=below("mixer."),
        linear_ffn=below("ffn."),
        down_DK={int(width): tensor for width, tensor in (below("down.") or {}).items()} or None,
    )


def conclude(parent: Model, layer: Weights, sums: LayerSums, init: InitSettings, widths: Sequence[int] = ()) -> Seen:
    """From the sums over text to what first weights need, so that the large sums can be dropped.

    Args:
        parent: the parent's spec.
        layer: the state dict of the parent's layer.
        sums: what was summed while text ran through it.
        init: how candidates begin.
        widths: of the narrower ffns that there will be, for a last matrix to be fitted to each.
    """
    down_DW = layer["mlp.down_proj.weight"]
    ranking_W = sums.contribution(down_DW)
    down_DK = None
    if init.channels != "contribution":
        assert sums.moments_WW is not None
        ranking_W = iterative_ranking(joint_losses(sums.moments_WW, down_DW, sums.num_tokens))
    if init.channels == "fitted":
        assert sums.moments_WW is not None
        kept = {width: _kept(ranking_W, width) for width in widths if width < len(ranking_W)}
        down_DK = {w: fitted_down(sums.moments_WW, down_DW, k, init.ridge).to(down_DW.dtype) for w, k in kept.items()}
    mixer = ffn = None
    if init.linear == "least-squares":
        has_bias = parent.has_qkv_bias or parent.has_output_bias
        mixer = _named("self_attn.linear_attn", *sums.mixer.solve(init.ridge, has_bias), down_DW.dtype)
        ffn = _named("mlp.linear_mlp", *sums.ffn.solve(init.ridge, parent.has_ffn_bias), down_DW.dtype)
    return Seen(
        ranking_W=ranking_W,
        kv_shares_H=sums.kv_shares() if init.kv_heads == "importance" else None,
        linear_mixer=mixer,
        linear_ffn=ffn,
        down_DK=down_DK,
    )


def mixer_weights(
    parent: Model, layer: Weights, mixer: Mixer, seen: Seen | None = None, init: InitSettings = AS_PUBLISHED
) -> Weights:
    """The first weights of a mixer candidate.

    Fewer KV heads are means of the parent's heads that they replace (Ainslie et al. 2023), or one of them. The linear
    mixer is W_o·W_v with every query head reading its own KV head, which is what attention does when a token sees
    itself only, or what `seen` says.

    Args:
        parent: the parent's spec.
        layer: the state dict of the parent's layer.
        mixer: the candidate.
        seen: what text has shown of the layer; not needed for means, first heads and products.
        init: how to begin.
    """
    match mixer:
        case Attention(num_kv_heads=num_kv_heads):
            attention = {k: v.clone() for k, v in layer.items() if k.startswith(("self_attn.", "input_layernorm."))}
            for name in ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"):
                if f"self_attn.{name}" in attention:
                    heads = attention[f"self_attn.{name}"].unflatten(0, (num_kv_heads, -1, parent.head_dim))
                    attention[f"self_attn.{name}"] = _one_of(heads, seen, init).flatten(0, 1)
            return attention
        case LinearMixer():
            if init.linear == "product":
                return _linear_mixer_weights(parent, layer)
            assert seen is not None and seen.linear_mixer is not None, "least squares need text"
            return {"input_layernorm.weight": layer["input_layernorm.weight"].clone()} | _copied(seen.linear_mixer)
        case NoOp():
            return {}
        case _:
            assert_never(mixer)


def ffn_weights(layer: Weights, ffn: FFN, seen: Seen | Tensor, init: InitSettings = AS_PUBLISHED) -> Weights:
    """The first weights of an ffn candidate.

    A narrower ffn keeps the channels that rank highest, in their order. The linear ffn is W_down·W_up, the gate
    ignored, or what `seen` says.

    Args:
        layer: the state dict of the parent's layer.
        ffn: the candidate.
        seen: what text has shown of the layer, or the ranking of its channels alone.
        init: how to begin.
    """
    seen = Seen(ranking_W=seen) if isinstance(seen, Tensor) else seen
    norm = {"post_attention_layernorm.weight": layer["post_attention_layernorm.weight"].clone()}
    up, down = layer["mlp.up_proj.weight"], layer["mlp.down_proj.weight"]
    match ffn:
        case GatedFFN(width=width):
            kept = _kept(seen.ranking_W, width).to(down.device)
            weights = {f"mlp.{name}.weight": layer[f"mlp.{name}.weight"][kept] for name in ("gate_proj", "up_proj")}
            weights |= {
                f"mlp.{n}.bias": layer[f"mlp.{n}.bias"][kept] for n in ("gate_proj", "up_proj") if _bias(layer, n)
            }
            weights |= {"mlp.down_proj.bias": layer["mlp.down_proj.bias"].clone()} if _bias(layer, "down_proj") else {}
            narrow = down[:, kept].clone()
            if init.channels == "fitted" and width < down.shape[1]:
                assert seen.down_DK is not None, "fitting needs text"
                narrow = seen.down_DK[width].to(down.device, copy=True)
            return norm | weights | {"mlp.down_proj.weight": narrow.contiguous()}
        case LinearFFN():
            if init.linear == "least-squares":
                assert seen.linear_ffn is not None, "least squares need text"
                return norm | _copied(seen.linear_ffn)
            weights = {"mlp.linear_mlp.weight": down @ up}
            if _bias(layer, "down_proj"):
                weights["mlp.linear_mlp.bias"] = down @ layer["mlp.up_proj.bias"] + layer["mlp.down_proj.bias"]
            return norm | weights
        case NoOp():
            return {}
        case _:
            assert_never(ffn)


def _kept(ranking_W: Tensor, width: int) -> Tensor:
    return ranking_W.topk(width).indices.sort().values


def _one_of(heads_GMR: Tensor, seen: Seen | None, init: InitSettings) -> Tensor:
    """One head for each group G of M; R are a head's rows."""
    match init.kv_heads:
        case "mean":
            return heads_GMR.mean(dim=1)
        case "first":
            return heads_GMR[:, 0]
        case "importance":
            assert seen is not None and seen.kv_shares_H is not None, "shares need text"
            best_G = seen.kv_shares_H.to(heads_GMR.device).unflatten(0, heads_GMR.shape[:2]).argmax(dim=1)
            return heads_GMR[torch.arange(len(best_G), device=best_G.device), best_G]
        case _:
            assert_never(init.kv_heads)


def _named(name: str, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Weights:
    found = {f"{name}.weight": weight.to(dtype).contiguous()}
    return found if bias is None else found | {f"{name}.bias": bias.to(dtype).contiguous()}


def _copied(weights: Weights) -> Weights:
    return {name: tensor.clone() for name, tensor in weights.items()}


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
