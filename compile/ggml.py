"""Our integer codes in the blocks of ggml, 32 weights with one fp16 scale each: Q4_0 and Q8_0.

Codes are carried as they are; only the scale is rounded, from fp32 to fp16. Groups of 64 or 128 become blocks that
repeat their scale, so they are as exact and no smaller than groups of 32.

Shapes: N outputs by K inputs, G groups of inputs; a row of a stored matrix is the blocks of one output.
"""

import numpy as np

from blockwright.compile.blocked import quantise_blocks
from blockwright.compile.export_numbers import scale_error
from blockwright.spec import Format

BLOCK = 32
"""Weights of a ggml block."""

BLOCK_BYTES = {"int4": 18, "int8": 34}
"""Q4_0 and Q8_0: two bytes of scale and 32 codes."""


def pack_matrix(weight_NK: np.ndarray, weights: Format) -> tuple[np.ndarray, float]:
    """A matrix as ggml stores it, and what rounding the scales to fp16 adds.

    Args:
        weight_NK: the matrix; K in whole groups.
        weights: int4 or int8, in groups of 32 or a multiple.

    Returns:
        blocks as uint8, one row per output, and the error that fp16 scales add (see `scale_error`).
    """
    assert weights.group_size is not None and weights.group_size % BLOCK == 0
    codes_KN, scales_GN = quantise_blocks(weight_NK.T, weights)
    codes_NK = np.ascontiguousarray(codes_KN.T)
    short_NG = np.repeat(scales_GN.T, weights.group_size // BLOCK, axis=1).astype(np.float16)
    codes_NGB = codes_NK.reshape(len(codes_NK), -1, BLOCK)
    head_NG2 = short_NG[..., None].view(np.uint8)
    blocks_NGX = np.concatenate([head_NG2, _packed(codes_NGB, weights.name)], axis=-1)
    return blocks_NGX.reshape(len(codes_NK), -1), scale_error(codes_KN, scales_GN)


def unpack_matrix(blocks_NX: np.ndarray, weights: Format) -> np.ndarray:
    """What ggml reads from `pack_matrix`'s blocks."""
    blocks_NGX = blocks_NX.reshape(len(blocks_NX), -1, BLOCK_BYTES[weights.name])
    scales_NG1 = np.ascontiguousarray(blocks_NGX[..., :2]).view(np.float16).astype(np.float32)
    rest = blocks_NGX[..., 2:]
    if weights.name == "int8":
        codes_NGB = rest.view(np.int8).astype(np.float32)
    else:
        codes_NGB = np.concatenate([rest & 15, rest >> 4], axis=-1).astype(np.float32) - 8
    return (codes_NGB * scales_NG1).reshape(len(blocks_NX), -1)


def _packed(codes_NGB: np.ndarray, name: str) -> np.ndarray:
    if name == "int8":
        return codes_NGB.view(np.uint8)
    shifted = (codes_NGB + 8).astype(np.uint8)  # the first 16 in the low halves, the last 16 in the high ones
    return shifted[..., : BLOCK // 2] | (shifted[..., BLOCK // 2 :] << 4)
