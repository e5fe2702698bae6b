"""Blocked integer weights: symmetric codes with one scale per group of inputs and per output.

Symmetric codes, a scale per block along the inputs: what ONNX calls blocked quantisation, ONNX Runtime turns
into its MatMulNBits kernel, and TensorRT takes as it is.

Shapes: K inputs, N outputs, G groups of `group_size` inputs, the last one possibly shorter.
"""

import ml_dtypes
import numpy as np

from blockwright.spec import Format

NUMBERS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
"""Formats of plain numbers."""
BITS = {"int4": 4, "int8": 8}
_SHRINKS = np.linspace(1.0, 0.8, 9)
"""Scales tried, as shares of the one that just covers the group; the one with the least squared error is kept."""

_MOST_VALUES = 2**20
"""Of a matrix that are worked on at once, so that it takes little more memory than its codes."""


def quantise_blocks(weight_KN: np.ndarray, weights: Format) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a matrix to integer codes.

    Args:
        weight_KN: the matrix, K inputs by N outputs.
        weights: int4 or int8 with its group size.

    Returns:
        codes_KN, whole numbers from -2^(bits-1) to 2^(bits-1) - 1 as int8, and scales_GN, positive fp32.
    """
    assert weights.group_size is not None
    num_inputs, num_outputs = weight_KN.shape
    codes_KN = np.empty(weight_KN.shape, dtype=np.int8)
    scales_GN = np.empty((-(-num_inputs // weights.group_size), num_outputs), dtype=np.float32)
    width = max(1, _MOST_VALUES // max(1, num_inputs))
    for start in range(0, num_outputs, width):
        part = slice(start, start + width)
        codes_KN[:, part], scales_GN[:, part] = _quantised(weight_KN[:, part], weights.group_size, weights)
    return codes_KN, scales_GN


def _quantised(weight_KN: np.ndarray, group_size: int, weights: Format) -> tuple[np.ndarray, np.ndarray]:
    """As `quantise_blocks`, all outputs at once."""
    highest = 2 ** (BITS[weights.name] - 1) - 1
    blocks_GSN = _blocks(weight_KN.astype(np.float32), group_size)
    covering_GN = np.abs(blocks_GSN).max(axis=1) / highest
    covering_GN[covering_GN == 0] = 1.0
    best_scales_GN, best_errors_GN = covering_GN, np.full(covering_GN.shape, np.inf, dtype=np.float32)
    for shrink in _SHRINKS:
        scales_GN = (covering_GN * shrink).astype(np.float32)
        codes_GSN = _round(blocks_GSN, scales_GN, highest)
        errors_GN = np.square(codes_GSN * scales_GN[:, None] - blocks_GSN).sum(axis=1)
        is_better_GN = errors_GN < best_errors_GN
        best_scales_GN = np.where(is_better_GN, scales_GN, best_scales_GN)
        best_errors_GN = np.where(is_better_GN, errors_GN, best_errors_GN)
    codes_GSN = _round(blocks_GSN, best_scales_GN, highest)
    codes_KN = codes_GSN.reshape(-1, weight_KN.shape[1])[: weight_KN.shape[0]]
    return codes_KN.astype(np.int8), best_scales_GN.astype(np.float32)


def pack_codes(codes_KN: np.ndarray, weights: Format) -> np.ndarray:
    """The codes as MatMulNBits takes them: unsigned, output by output, two of int4 in a byte, the lower half first.

    Returns:
        bytes_NGS, S bytes per group; a last group that is shorter is filled up with zeros' code.
    """
    assert weights.group_size is not None
    zero = 2 ** (BITS[weights.name] - 1)
    num_inputs, num_outputs = codes_KN.shape
    num_groups = -(-num_inputs // weights.group_size)
    num_filled = num_groups * weights.group_size
    packed_NB = np.empty((num_outputs, num_filled * BITS[weights.name] // 8), dtype=np.uint8)
    width = max(1, _MOST_VALUES // max(1, num_filled))
    for start in range(0, num_outputs, width):
        part_KN = codes_KN[:, start : start + width]
        unsigned_NK = np.full((part_KN.shape[1], num_filled), zero, dtype=np.uint8)
        unsigned_NK[:, :num_inputs] = part_KN.T.view(np.uint8) + np.uint8(zero)  # -1 is 255, and wraps to zero - 1
        is_half = weights.name == "int4"
        packed_NB[start : start + width] = unsigned_NK[:, ::2] | (unsigned_NK[:, 1::2] << 4) if is_half else unsigned_NK
    return packed_NB.reshape(num_outputs, num_groups, -1)


def dequantise_blocks(codes_KN: np.ndarray, scales_GN: np.ndarray, group_size: int) -> np.ndarray:
    """The matrix that the codes stand for."""
    return codes_KN.astype(np.float32) * np.repeat(scales_GN, group_size, axis=0)[: len(codes_KN)]


def rounded(weight_KN: np.ndarray, weights: Format) -> np.ndarray:
    """The matrix as it comes back after being stored in a format."""
    if weights.group_size is None:
        return weight_KN.astype(NUMBERS[weights.name]).astype(np.float32)
    codes_KN, scales_GN = quantise_blocks(weight_KN, weights)
    return dequantise_blocks(codes_KN, scales_GN, weights.group_size)


def _blocks(weight_KN: np.ndarray, group_size: int) -> np.ndarray:
    num_inputs, num_outputs = weight_KN.shape
    num_groups = -(-num_inputs // group_size)
    padded = np.zeros((num_groups * group_size, num_outputs), dtype=np.float32)
    padded[:num_inputs] = weight_KN
    return padded.reshape(num_groups, group_size, num_outputs)


def _round(blocks_GSN: np.ndarray, scales_GN: np.ndarray, highest: int) -> np.ndarray:
    return np.clip(np.round(blocks_GSN / scales_GN[:, None]), -highest - 1, highest)
