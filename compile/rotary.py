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
    length = _yarn_length(dict(rope.parameters)) if rope.scaling == "yarn" else np.float32(1.0)
    return np.cos(angles) * length, np.sin(angles) * length


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
        case "yarn":
            return _yarn(frequencies, parameters, rope.theta)
        case other:
            raise InputError(
                "rope_type",
                got=other,
                expected="default, linear, llama3 or yarn",
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


def _yarn(frequencies: np.ndarray, parameters: dict[str, float], theta: float) -> np.ndarray:
    """YaRN (Peng et al. 2023): waves that turn often within the trained length are kept, long ones slowed."""
    head_dim, length = 2 * len(frequencies), parameters["original_max_position_embeddings"]

    def channel_of(turns: float) -> float:
        """The channel whose wave turns so often within the trained length."""
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel_of(parameters.get("beta_fast") or 32), channel_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001  # as transformers: no division by zero
    slowed_share = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    slowed = frequencies / np.float32(parameters["factor"])
    return (slowed * slowed_share + frequencies * (1 - slowed_share)).astype(np.float32)


def _yarn_length(parameters: dict[str, float]) -> np.float32:
    """What YaRN lengthens queries and keys by, so that attention over more tokens stays as sharp."""
    given = parameters.get("attention_factor")
    if given is not None:
        return np.float32(given)
    own, all_channels = parameters.get("mscale"), parameters.get("mscale_all_dim")

    def lengthened(scale: float) -> float:
        return 1.0 if parameters["factor"] <= 1 else 0.1 * scale * math.log(parameters["factor"]) + 1.0

    return np.float32(lengthened(own) / lengthened(all_channels) if own and all_channels else lengthened(1.0))
