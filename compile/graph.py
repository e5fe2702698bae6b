"""A thin hand on `onnx.helper`: nodes get their output names, constants are kept once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from blockwright.compile.blocked import quantise_blocks
from blockwright.compile.export_numbers import as_type
from blockwright.compile.weight_file import WeightFile
from blockwright.spec import FP16, Format

OPSET = 24
IR_VERSION = 11
OLDER_OPSET = 21
_IR_VERSIONS = {OPSET: IR_VERSION, OLDER_OPSET: 10}
"""Of the file's own format; readers of an opset need not know a later one."""

Dimension = int | str
Activations = Literal["float32", "float16", "bfloat16"]
"""What a graph computes in: its hidden states, its cache, and all weights that are no integers."""

_ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_NUMBERS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_INTEGER_TYPES = {"int4": ml_dtypes.int4, "int8": np.int8}


@dataclass(slots=True)
class Graph:
    """An ONNX graph under construction."""

    store: WeightFile | None = None
    """Where constants go as soon as they are made; None to keep them in the graph."""
    activations: Activations = "float32"
    opset: int = OPSET
    """Of ONNX's own operators."""
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)

    @property
    def element_type(self) -> int:
        """What the graph computes in, as ONNX numbers it."""
        return _ELEMENT_TYPES[self.activations]

    def input(self, name: str, dtype: str, shape: list[Dimension]) -> str:
        """Declares an input of the graph and returns its name."""
        self.inputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: list[Dimension]) -> None:
        """Declares a value as an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[dtype], shape))

    def constant(self, name: str, value: np.ndarray) -> str:
        """Keeps an array under a name, once, and returns the name."""
        if name not in self.initializers:
            array = np.ascontiguousarray(value)
            kept = numpy_helper.from_array(array, name) if self.store is None else self.store.add(name, array)
            self.initializers[name] = kept
        return name

    def node(
        self,
        op: str,
        inputs: list[str],
        name: str,
        *,
        more_outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Adds a node and returns the name of its first output, which is `name`."""
        self.nodes.append(helper.make_node(op, inputs, [name, *more_outputs], name=name, domain=domain, **attributes))
        return name

    def cast(self, source: str, dtype: str, name: str) -> str:
        """Adds a cast."""
        return self.node("Cast", [source], name, to=_ELEMENT_TYPES[dtype])

    def matrix(self, name: str, weight_KN: np.ndarray, weights: Format) -> str:
        """A weight matrix in its stored format, as a value that a MatMul takes: K inputs by N outputs."""
        if weights.group_size is None:
            return self.widened(name, self.stored(f"{name}.half" if weights == FP16 else name, weight_KN, weights))
        codes, scales = quantise_blocks(weight_KN, weights)
        self.constant(f"{name}.codes", codes.view(_INTEGER_TYPES[weights.name]))
        self.floats(f"{name}.scales", scales)
        return self.node(
            "DequantizeLinear",
            [f"{name}.codes", f"{name}.scales"],
            name,
            axis=0,
            block_size=weights.group_size,
        )

    def stored(self, name: str, value: np.ndarray, weights: Format) -> str:
        """Keeps numbers in fp16 where that is the format, else in what the graph computes in.

        Raises:
            InputError: one is too large for fp16.
        """
        is_half = weights == FP16 and self.activations == "float32"
        return self.constant(name, as_type(name, value, np.float16)) if is_half else self.floats(name, value)

    def floats(self, name: str, value: np.ndarray) -> str:
        """Keeps numbers in what the graph computes in.

        Raises:
            InputError: one is too large for it.
        """
        if self.activations == "float32":
            return self.constant(name, value.astype(np.float32, copy=False))
        return self.constant(name, as_type(name, value, _NUMBERS[self.activations]))

    def is_wide(self, name: str) -> bool:
        """Whether a constant is stored in what the graph computes in."""
        return self.initializers[name].data_type == self.element_type

    def widened(self, name: str, source: str) -> str:
        """A stored constant in what the graph computes in, under another name if it was stored in less."""
        if self.is_wide(source):
            return source
        # ONNX Runtime does this once, when it opens the graph: the file is half as large, the work the same.
        return self.cast(source, self.activations, name)

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, list(self.initializers.values()))
        domains = {node.domain for node in self.nodes} - {""}
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        ir_version = _IR_VERSIONS[self.opset]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="blockwright")
