"""Tables of cosines and sines for rotary position embedding (Su et al. 2021), as the parent's family computes them."""

import math

import numpy as np

from blockwright.errors import InputError
from blockwright.spec import Rope


def rotary_tables(rope: Rope, head_dim: int, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, each of shape (num_positions, head_dim / 2) in fp32.

    Raises:
        InputError: the parent scales its positions in a way that is not known here.
    """
    frequencies = _frequencies(rope, head_dim)
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles), np.sin(angles)


def _frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    parameters = dict(rope.parameters)
    match rope.scaling:
        case "default":
            return frequencies
        case "linear":
            return frequencies / np.float32(parameters["factor"])
        case "llama3":
            return _llama3(frequencies, parameters)
        case other:
            raise InputError(
                "rope_type",
                got=other,
                expected="default, linear or llama3",
                remedy="Compile a parent with one of these; its torch checkpoint works all the same.",
            )


def _llama3(frequencies: np.ndarray, parameters: dict[str, float]) -> np.ndarray:
    """Llama 3.1: long waves are slowed by the factor, short ones kept, those between blended."""
    length = parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    waves = 2 * math.pi / frequencies
    slowed = frequencies / parameters["factor"]
    blend = (length / waves - low) / (high - low)
    blended = (1 - blend) * slowed + blend * frequencies
    return np.where(waves > length / low, slowed, np.where(waves < length / high, frequencies, blended)).astype(
        np.float32
    )
