"""Models of given blocks with random weights: their time is that of real ones, and any number of them can be made."""

import functools
import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from blockwright.count import ffn_matrices, mixer_matrices
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp

_SCALE = 0.02
_POOL_VALUES = 2**24


def random_weights(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint for the model, by the names that the graph builder looks for."""
    generator = np.random.default_rng(seed)
    return {name: _scaled(generator.standard_normal(shape, dtype=np.float32)) for name, shape in _shapes(model).items()}


class RepeatedWeights(Mapping[str, np.ndarray]):
    """The same of a large model, where random numbers take minutes and its weights more memory than there is.

    Each is made when it is read: a stretch of the same random numbers, over and over, that begins elsewhere for each
    name.
    """

    def __init__(self, model: Model, num_values: int = _POOL_VALUES) -> None:
        self._shapes, self._pool = _shapes(model), _pool(num_values)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        start = zlib.crc32(name.encode()) % (self._pool.size // 2)
        return _scaled(np.resize(self._pool[start : start + math.prod(shape)], shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@functools.cache
def _pool(num_values: int) -> np.ndarray:
    """Kept, for to draw them takes longer than most networks take to write."""
    return np.random.default_rng(0).standard_normal(num_values, dtype=np.float32)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Matrices around nothing, vectors around one."""
    return _SCALE * values if values.ndim > 1 else 1 + _SCALE * values


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a checkpoint, by name: outputs by inputs."""
    hidden = model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    shapes["model.norm.weight"] = (hidden,)
    if not model.has_tied_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    for index, block in enumerate(model.layers):
        prefix = f"model.layers.{index}"
        if not isinstance(block.mixer, NoOp):
            shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        if not isinstance(block.ffn, NoOp):
            shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if isinstance(block.mixer, Attention) and model.has_qk_norm:
            for name in "qk":
                shapes[f"{prefix}.self_attn.{name}_norm.weight"] = (model.head_dim,)
        names, biased = _matrices(model, block)
        for name, (inputs, outputs) in names.items():
            shapes[f"{prefix}.{name}.weight"] = (outputs, inputs)
            if name in biased:
                shapes[f"{prefix}.{name}.bias"] = (outputs,)
    return shapes


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
