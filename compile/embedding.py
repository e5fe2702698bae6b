"""Rows of the token embedding, looked up in a table that is stored in integers.

Only the rows of the new tokens are multiplied out. ONNX Runtime's own operator for that (GatherBlockQuantized) is none
of ONNX's, so this is written in standard ones, the same in both flavours. Two int4 codes share a byte, one from each
half of a row: so the halves come back side by side.

Shapes: V vocabulary, D channels, P channels filled up to whole groups, G groups of S channels, B batch, T new tokens.
"""

import numpy as np

from blockwright.compile.blocked import quantise_blocks
from blockwright.compile.graph import Graph
from blockwright.spec import Format

_ZERO = 8
"""What is added to an int4 code, so that it fits into half an unsigned byte."""
_MOST_VALUES = 2**22
"""Of the table that are quantised at once: no second copy of its codes is made."""


def integer_rows(graph: Graph, table_VD: np.ndarray, weights: Format, ids: str) -> str:
    """Adds the look-up of rows, embedded_BTD.

    Args:
        graph: gets the table's codes and scales, and the nodes.
        table_VD: the embedding.
        weights: int8 or int4 with its group size.
        ids: the input of token ids, ids_BT.

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
