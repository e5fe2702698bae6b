"""Models of given blocks with random weights: their time is that of real ones, and any number of them can be made."""

import numpy as np

from blockwright.count import ffn_matrices, mixer_matrices
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp

_SCALE = 0.02


def random_weights(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint for the model, by the names that the graph builder looks for."""
    generator = np.random.default_rng(seed)
    hidden = model.hidden_size

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        return _SCALE * generator.standard_normal((outputs, inputs), dtype=np.float32)

    def vector(size: int) -> np.ndarray:
        return 1 + _SCALE * generator.standard_normal(size, dtype=np.float32)

    weights = {"model.embed_tokens.weight": matrix(model.vocab_size, hidden), "model.norm.weight": vector(hidden)}
    if not model.has_tied_embeddings:
        weights["lm_head.weight"] = matrix(model.vocab_size, hidden)
    for index, block in enumerate(model.layers):
        prefix = f"model.layers.{index}"
        if not isinstance(block.mixer, NoOp):
            weights[f"{prefix}.input_layernorm.weight"] = vector(hidden)
        if not isinstance(block.ffn, NoOp):
            weights[f"{prefix}.post_attention_layernorm.weight"] = vector(hidden)
        if isinstance(block.mixer, Attention) and model.has_qk_norm:
            for name in "qk":
                weights[f"{prefix}.self_attn.{name}_norm.weight"] = vector(model.head_dim)
        names, biased = _matrices(model, block)
        for name, (inputs, outputs) in names.items():
            weights[f"{prefix}.{name}.weight"] = matrix(outputs, inputs)
            if name in biased:
                weights[f"{prefix}.{name}.bias"] = vector(outputs)
    return weights


def _matrices(model: Model, block: Block) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """A block's matrices by name, as inputs and outputs, and which of them have biases."""
    hidden = model.hidden_size
    names: dict[str, tuple[int, int]] = {}
    biased: set[str] = set()
    match block.mixer:
        case Attention():
            projections = [f"self_attn.{name}_proj" for name in "qkvo"]
            names |= dict(zip(projections, mixer_matrices(model, block.mixer), strict=True))
            biased |= set(projections[:3]) if model.has_qkv_bias else set()
            biased |= set(projections[3:]) if model.has_output_bias else set()
        case LinearMixer():
            names["self_attn.linear_attn"] = (hidden, hidden)
            biased |= {"self_attn.linear_attn"} if model.has_qkv_bias or model.has_output_bias else set()
        case NoOp():
            pass
    match block.ffn:
        case GatedFFN():
            projections = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
            names |= dict(zip(projections, ffn_matrices(model, block.ffn), strict=True))
            biased |= set(projections) if model.has_ffn_bias else set()
        case LinearFFN():
            names["mlp.linear_mlp"] = (hidden, hidden)
            biased |= {"mlp.linear_mlp"} if model.has_ffn_bias else set()
        case NoOp():
            pass
    return names, biased
