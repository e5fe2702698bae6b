"""Rows of the token embedding, looked up in a table that is stored in integers.

Only the rows of the new tokens are multiplied out. ONNX Runtime's own operator for that (GatherBlockQuantized) is none
of ONNX's, so this is written in standard ones, the same in both flavours. Two int4 codes share a byte, one from each
half of a row: so the halves come back side by side.

TensorRT looks up no bytes and has no operators on bits («Quantized constant is only allowed before DQ», TensorRT-RTX
1.7.1). For it the codes fill words of 32 bits, which arithmetic takes apart: a remainder is what the lower digits say,
a quotient what the higher ones say.

Shapes: V vocabulary, D channels, P channels filled up to whole groups, G groups of S channels, B batch, T new tokens,
W words of a row, N codes in half a word.
"""

from typing import Literal

import numpy as np

from blockwright.compile.blocked import BITS, quantise_blocks
from blockwright.compile.graph import Graph
from blockwright.spec import Format

_ZERO = 8
"""What is added to an int4 code, so that it fits into half an unsigned byte."""
_MOST_VALUES = 2**22
"""Of the table that are quantised at once: no second copy of its codes is made."""
_HALF = 2**16
"""Numbers that half a word tells apart."""

CodesIn = Literal["bytes", "words"]
"""What codes are kept in: bytes, or words of 32 bits."""


def integer_rows(graph: Graph, table_VD: np.ndarray, weights: Format, ids: str, codes_in: CodesIn = "bytes") -> str:
    """Adds the look-up of rows, embedded_BTD.

    Args:
        graph: gets the table's codes and scales, and the nodes.
        table_VD: the embedding.
        weights: int8 or int4 with its group size.
        ids: the input of token ids, ids_BT.
        codes_in: words for TensorRT.

    Returns:
        the name of the rows, in what the graph computes in.
    """
    assert weights.group_size is not None
    size, num_channels = weights.group_size, table_VD.shape[1]
    num_groups = -(-num_channels // size)
    codes_VP = np.zeros((len(table_VD), num_groups * size), dtype=np.int8)
    scales_VG = np.empty((len(table_VD), num_groups), dtype=np.float32)
    step = max(1, _MOST_VALUES // num_channels)
    for start in range(0, len(table_VD), step):
        rows = slice(start, start + step)
        codes_DV, scales_GV = quantise_blocks(table_VD[rows].T, weights)
        codes_VP[rows, :num_channels], scales_VG[rows] = codes_DV.T, scales_GV.T
    scales = graph.floats("embedding.scales", scales_VG[:, :, None])
    if codes_in == "words":
        numbers = _of_words(graph, codes_VP, ids, BITS[weights.name])
    else:
        numbers = _of_int4(graph, codes_VP, ids) if weights.name == "int4" else _of_int8(graph, codes_VP, ids)
    groups = graph.constant("shape_embedding_groups", np.array([0, 0, num_groups, size]))
    flat = graph.constant("shape_embedding_flat", np.array([0, 0, num_groups * size]))
    numbers = graph.node("Reshape", [numbers, groups], "embedding.numbers_by_group")
    scaled = graph.node(
        "Mul", [numbers, graph.node("Gather", [scales, ids], "embedding.scales_of_rows")], "embedding.scaled"
    )
    if num_groups * size == num_channels:
        return graph.node("Reshape", [scaled, flat], "embedded")
    filled = graph.node("Reshape", [scaled, flat], "embedding.filled")
    ends = [np.array([0]), np.array([num_channels]), np.array([2])]
    names = ["shape_embedding_first", "shape_embedding_end", "shape_embedding_axis"]
    bounds = [graph.constant(name, value) for name, value in zip(names, ends, strict=True)]
    return graph.node("Slice", [filled, *bounds], "embedded")


def _of_int8(graph: Graph, codes_VP: np.ndarray, ids: str) -> str:
    rows = graph.node("Gather", [graph.constant("embedding.codes", codes_VP), ids], "embedding.rows")
    return graph.node("Cast", [rows], "embedding.numbers", to=graph.element_type)


def _of_int4(graph: Graph, codes_VP: np.ndarray, ids: str) -> str:
    half = codes_VP.shape[1] // 2
    unsigned_VP = codes_VP.view(np.uint8)
    unsigned_VP += np.uint8(_ZERO)  # in place: -1 is 255, and wraps round to 7
    packed = graph.constant("embedding.codes", unsigned_VP[:, :half] | (unsigned_VP[:, half:] << 4))
    rows = graph.node("Gather", [packed, ids], "embedding.rows")
    mask = graph.constant("embedding.mask", np.array(15, dtype=np.uint8))
    width = graph.constant("embedding.bits", np.array(4, dtype=np.uint8))
    halves = [
        graph.node("BitwiseAnd", [rows, mask], "embedding.lower"),
        graph.node("BitShift", [rows, width], "embedding.upper", direction="RIGHT"),
    ]
    both = graph.node("Concat", halves, "embedding.unsigned", axis=2)
    numbers = graph.node("Cast", [both], "embedding.positive", to=graph.element_type)
    return graph.node("Sub", [numbers, graph.floats("embedding.zero", np.array(_ZERO))], "embedding.numbers")


def _of_words(graph: Graph, codes_VP: np.ndarray, ids: str, bits: int) -> str:
    zero, base, num_codes = 2 ** (bits - 1), 2**bits, 16 // bits
    unsigned_VP = codes_VP.view(np.uint8)
    unsigned_VP += np.uint8(zero)  # in place: -1 is 255, and wraps round to zero - 1
    # A word's lower half has codes of the row's first half, so that the halves come back side by side.
    digits_VHWN = unsigned_VP.reshape(len(codes_VP), 2, -1, num_codes)
    halves_VHW = np.zeros(digits_VHWN.shape[:3], dtype=np.uint16)
    for place in range(num_codes):
        halves_VHW |= digits_VHWN[..., place].astype(np.uint16) << np.uint16(bits * place)
    words_VW = halves_VHW[:, 0] | halves_VHW[:, 1].astype(np.uint32) << np.uint32(16)
    words = graph.node("Gather", [graph.constant("embedding.words", words_VW.view(np.int32)), ids], "embedding.rows")
    half = graph.constant("embedding.half", np.array(_HALF, dtype=np.int32))
    lower = _remainder(graph, words, half, "embedding.lower")
    whole = graph.node("Sub", [words, lower], "embedding.without_lower")
    upper = _remainder(graph, graph.node("Div", [whole, half], "embedding.quotient"), half, "embedding.upper")
    both = graph.node("Concat", [lower, upper], "embedding.halves", axis=2)
    last = graph.constant("embedding.last_axis", np.array([-1]))
    places = graph.constant("embedding.places", base ** np.arange(num_codes, dtype=np.int32))
    shifted = graph.node(
        "Div", [graph.node("Unsqueeze", [both, last], "embedding.column"), places], "embedding.shifted"
    )
    digits = graph.node(
        "Mod", [shifted, graph.constant("embedding.base", np.array(base, dtype=np.int32))], "embedding.digits"
    )
    numbers = graph.node("Cast", [digits], "embedding.positive", to=graph.element_type)
    flat = graph.constant("shape_embedding_codes", np.array([0, 0, codes_VP.shape[1]]))
    by_code = graph.node("Reshape", [numbers, flat], "embedding.by_code")
    return graph.node("Sub", [by_code, graph.floats("embedding.zero", np.array(zero))], "embedding.numbers")


def _remainder(graph: Graph, x: str, divisor: str, name: str) -> str:
    """Adds the remainder that is not below 0, even where a runtime's own has the sign of what is divided."""
    signed = graph.node("Mod", [x, divisor], f"{name}.signed")
    return graph.node("Mod", [graph.node("Add", [signed, divisor], f"{name}.above_zero"), divisor], name)
