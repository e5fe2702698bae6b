"""Puts our own int4 product (`cpu_int4.c`) in the place of ONNX Runtime's, in a graph that is being opened.

Files stay as they are: MatMulNBits of the contrib flavour, and DequantizeLinear before MatMul of the standard one,
which ONNX Runtime would turn into MatMulNBits, become Int4Product, and their weights are woven as they are read.

Shapes: K inputs, N outputs, G groups, P inputs with the last group filled up.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from blockwright.compile.cpu_weaving import LANES, weave_by_input, weave_by_output

DOMAIN = "blockwright"
_OUTPUTS = 8
"""Outputs of a register of 256 bits."""
_STRIDE = 32
"""Groups are multiples of so many inputs, which are added up in 16 bits, …"""
_MOST_GROUP = 256
"""… and at most this."""
_ZERO = 8
"""The code of 0."""
_ALIGNMENT = 64
"""Of the weights in memory, in bytes: a line of the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A product with int4 weights, as either flavour writes it."""

    nodes: list[NodeProto]
    """What Int4Product stands for; its output is the last one's."""
    x: str
    codes: str
    scales: str
    bias: str
    size: tuple[int, int, int]
    """K, N and the inputs of a group."""
    woven: Callable[[np.ndarray], np.ndarray]
    """Codes as the operator reads them, from the bytes as they are stored."""
    scales_NG: Callable[[np.ndarray], np.ndarray]

    @property
    def woven_bytes(self) -> int:
        """Of codes and scales, at most."""
        num_inputs, num_outputs, group_size = self.size
        num_groups, filled = -(-num_inputs // group_size), -(-num_outputs // _OUTPUTS) * _OUTPUTS
        return filled * num_groups * (group_size // 2 + 4) + 3 * _ALIGNMENT


def use_own_products(graph: GraphProto, folder: Path | None) -> dict[str, np.ndarray]:
    """Replaces what can be replaced.

    Args:
        graph: changed in place; its weights may be files.
        folder: where those are.

    Returns:
        the woven weights by name; the graph has these tensors without their numbers.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    products = [*_contrib_products(graph, stored), *_standard_products(graph, stored)]
    room = _Room(sum(product.woven_bytes for product in products))
    woven: dict[str, np.ndarray] = {}
    tensors: dict[str, TensorProto] = {}
    for product in products:
        arrays = {
            product.codes: product.woven(_bytes_of(stored[product.codes], folder)),
            product.scales: weave_scales(product.scales_NG(_bytes_of(stored[product.scales], folder).view(np.float32))),
        }
        for name, array in arrays.items():
            woven[f"{name}.woven"] = room.take(array)
            tensors[name] = _declared(f"{name}.woven", array, stored[name])
        _replace(graph, product)
    if woven:
        still_read = {name for node in graph.node for name in node.input}
        kept = [tensor for name, tensor in stored.items() if name not in tensors or name in still_read]
        kept += tensors.values()
        del graph.initializer[:]
        graph.initializer.extend(kept)
    return woven


def _replace(graph: GraphProto, product: _Product) -> None:
    last = product.nodes[-1]
    inputs = [product.x, f"{product.codes}.woven", f"{product.scales}.woven", product.bias]
    sizes: dict[str, Any] = dict(zip(("K", "N", "block_size"), product.size, strict=True))
    outputs = list(last.output)
    last.CopyFrom(helper.make_node("Int4Product", inputs, outputs, name=last.name, domain=DOMAIN, **sizes))
    for node in product.nodes[:-1]:
        graph.node.remove(node)


class _Room:
    """One block of memory for all weights: numpy asks for huge pages for blocks of megabytes, and they read faster."""

    def __init__(self, num_bytes: int) -> None:
        self._bytes = np.empty(num_bytes, dtype=np.uint8)
        self._taken = -self._bytes.ctypes.data % _ALIGNMENT

    def take(self, array: np.ndarray) -> np.ndarray:
        """The array, moved here."""
        start = self._taken
        self._taken += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        moved = self._bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved


def weave_codes(unsigned_NP: np.ndarray) -> np.ndarray:
    """Codes as the operator reads them: 32 bytes for 8 inputs of 8 outputs, inputs k and k + 4 in a byte."""
    num_outputs, num_inputs = unsigned_NP.shape
    fours = unsigned_NP.reshape(num_outputs, num_inputs // 8, 2, 4)
    pairs = np.full((-(-num_outputs // _OUTPUTS) * _OUTPUTS, num_inputs // 8, 4), _ZERO | _ZERO << 4, dtype=np.uint8)
    np.left_shift(fours[:, :, 1], 4, out=pairs[:num_outputs])
    pairs[:num_outputs] |= fours[:, :, 0]
    return np.ascontiguousarray(pairs.reshape(-1, _OUTPUTS, num_inputs // 8, 4).transpose(0, 2, 1, 3))


def weave_scales(scales_NG: np.ndarray) -> np.ndarray:
    """Scales as the operator reads them: those of 8 outputs side by side."""
    num_outputs, num_groups = scales_NG.shape
    filled = np.zeros((-(-num_outputs // _OUTPUTS) * _OUTPUTS, num_groups), dtype=np.float32)
    filled[:num_outputs] = scales_NG
    return np.ascontiguousarray(filled.reshape(-1, _OUTPUTS, num_groups).transpose(0, 2, 1))


def _contrib_products(graph: GraphProto, stored: dict[str, TensorProto]) -> list[_Product]:
    products = []
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        told = _attributes(node)
        inputs = [*node.input, "", "", ""][:6]
        is_plain = told["bits"] == 4 and told.get("accuracy_level") == 4 and not inputs[3] and not inputs[4]
        if not is_plain or not _is_group(told["block_size"]) or not {inputs[1], inputs[2]} <= stored.keys():
            continue
        num_outputs = told["N"]
        products.append(
            _Product(
                nodes=[node],
                x=inputs[0],
                codes=inputs[1],
                scales=inputs[2],
                bias=inputs[5],
                size=(told["K"], num_outputs, told["block_size"]),
                woven=lambda data, n=num_outputs: weave_by_output(data, n),
                scales_NG=lambda scales, n=num_outputs: scales.reshape(n, -1),
            )
        )
    return products


def _standard_products(graph: GraphProto, stored: dict[str, TensorProto]) -> list[_Product]:
    readers = Counter(name for node in graph.node for name in node.input)
    widened = {node.output[0]: node for node in graph.node if _is_int4(node, stored) and readers[node.output[0]] == 1}
    products = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in widened:
            continue
        source = widened[node.input[1]]
        (num_inputs, num_outputs), group_size = stored[source.input[0]].dims, _attributes(source)["block_size"]
        size = (num_inputs, num_outputs, group_size)
        products.append(
            _Product(
                nodes=[source, node],
                x=node.input[0],
                codes=source.input[0],
                scales=source.input[1],
                bias="",
                size=size,
                woven=lambda data, size=size: _woven(data, size),
                scales_NG=lambda scales, n=num_outputs: scales.reshape(-1, n).T,
            )
        )
    return products


def _is_int4(node: NodeProto, stored: dict[str, TensorProto]) -> bool:
    """Whether a node makes a float32 matrix of symmetric int4 codes in groups of inputs that suit."""
    if node.op_type != "DequantizeLinear" or len(node.input) != 2 or not set(node.input) <= stored.keys():
        return False
    codes, scales = (stored[name] for name in node.input)
    is_int4 = codes.data_type == TensorProto.INT4 and scales.data_type == TensorProto.FLOAT and len(codes.dims) == 2
    told = _attributes(node)
    return is_int4 and told.get("axis") == 0 and _is_group(told.get("block_size", 0))


def _is_group(group_size: int) -> bool:
    return 0 < group_size <= _MOST_GROUP and group_size % _STRIDE == 0


def _woven(data: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Codes that are stored input by input; those of odd sizes one by one."""
    num_inputs, num_outputs, group_size = size
    if num_inputs % LANES or num_outputs % LANES:
        return weave_codes(_turned(data, size))
    return weave_by_input(data, num_outputs, -(-num_inputs // group_size) * group_size)


def _halves(data: np.ndarray) -> np.ndarray:
    """Two codes from each byte, the lower half first."""
    codes = np.empty((data.size, 2), dtype=np.uint8)
    np.bitwise_and(data, 15, out=codes[:, 0])
    np.right_shift(data, 4, out=codes[:, 1])
    return codes


def _turned(data: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Unsigned codes, output by output, of signed ones that are stored input by input; the last group filled up."""
    num_inputs, num_outputs, group_size = size
    codes_KN = _halves(data).reshape(-1)[: num_inputs * num_outputs].reshape(num_inputs, num_outputs)
    turned_NP = np.full((num_outputs, -(-num_inputs // group_size) * group_size), _ZERO, dtype=np.uint8)
    turned_NP[:, :num_inputs] = (codes_KN ^ _ZERO).T
    return turned_NP


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _bytes_of(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """A tensor's numbers as they are stored."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.frombuffer(tensor.raw_data, dtype=np.uint8)
    assert folder is not None
    where = {entry.key: entry.value for entry in tensor.external_data}
    file = folder / where["location"]
    return np.fromfile(file, dtype=np.uint8, count=int(where["length"]), offset=int(where["offset"]))


def _declared(name: str, array: np.ndarray, instead: TensorProto) -> TensorProto:
    """A tensor whose numbers the session is given; ONNX Runtime still wants to see a file where there was one."""
    if instead.data_location != TensorProto.EXTERNAL:
        return numpy_helper.from_array(array, name)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=instead.external_data[0].value)
    return tensor
