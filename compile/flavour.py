"""In which operators a decoder is written: the same description, the same codes, three dialects of ONNX.

``standard`` keeps to opset 24 and runs in ONNX Runtime and TensorRT. ``contrib`` uses ONNX Runtime's own operators:
MatMulNBits for integer weights, and GroupQueryAttention, whose time grows with the tokens there are instead of with
the slots there is room for. ``decomposed`` makes attention of products and a softmax, in opset 21, for TensorRT before
10.15; no engine of ONNX Runtime is written in it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from blockwright.compile.embedding import CodesIn
from blockwright.compile.graph import OLDER_OPSET, OPSET, Activations, Dimension, Graph
from blockwright.compile.slots import caches_of
from blockwright.errors import InputError
from blockwright.spec import Attention, Format, Model

FlavourName = Literal["standard", "contrib"]
"""What ONNX Runtime's engines are written in."""

_HEAD_MULTIPLE = 8
"""GroupQueryAttention takes no head size that is not a multiple of this (onnxruntime 1.31)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """Which operators, and what they are told."""

    name: FlavourName | Literal["decomposed"]
    accuracy_level: Literal[0, 4] = 4
    """Written into each MatMulNBits of ``contrib``; ``standard`` leaves it to the session."""
    activations: Activations = "float32"
    """Of ``standard`` and ``decomposed``; ``contrib`` computes in float32."""
    slots: int | None = None
    """Of the caches of layers that see all; None for as many as it is given at run time, which TensorRT refuses, and
    ``decomposed`` too."""
    codes_in: CodesIn = "bytes"
    """Of an embedding in integers; words for TensorRT."""

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        return OLDER_OPSET if self.name == "decomposed" else OPSET


STANDARD = Flavour(name="standard")

DEFAULT_FLAVOUR: FlavourName = "standard"
"""What engines are built in and profiles measure unless told otherwise: both at once, or promises would not hold."""


def best_flavour(model: Model) -> FlavourName:
    """The default one where the model can be written in it, else the one that writes everything."""
    return DEFAULT_FLAVOUR if _is_writable(model) else "standard"


def check_writable(model: Model, name: FlavourName | Literal["decomposed"]) -> None:
    """Refuses a flavour that lacks an operator for the model.

    Raises:
        InputError: the model's heads have a size that ``contrib`` has no attention for.
    """
    if name == "contrib" and not _is_writable(model):
        raise InputError(
            "flavour",
            got=f"contrib for heads of {model.head_dim}",
            expected=f"a head size that is a multiple of {_HEAD_MULTIPLE}",
            remedy="Take the standard flavour.",
        )


def _is_writable(model: Model) -> bool:
    has_attention = any(isinstance(block.mixer, Attention) for block in model.layers)
    return not has_attention or model.head_dim % _HEAD_MULTIPLE == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight matrix with its bias, as the checkpoint has them."""

    name: str
    """Without ``.weight``."""
    weight_NK: np.ndarray
    bias_N: np.ndarray | None
    weights: Format
    norm: np.ndarray | None = None
    """The norm over each head that comes behind it, with its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """The residual stream behind a layer's part, its last addend not yet added: a norm may add it in one go."""

    value: str
    addend: str | None = None
    name: str = ""
    """Of the sum."""


class Operators(ABC):
    """Writes the pieces of a decoder into a graph, each flavour in its own operators."""

    def __init__(self, graph: Graph, model: Model, slots: Dimension = "slots") -> None:
        self.graph = graph
        self.model = model
        self.slots = slots
        self.held = caches_of(model, slots)
        """By layer."""

    @abstractmethod
    def declare_attention_inputs(self, num_positions: int) -> None:
        """Declares what every layer with attention reads beside its cache."""

    @abstractmethod
    def linear(self, matrix: Matrix, x: str, output: str) -> str:
        """Adds x·Wᵀ + b under the name `output`."""

    @abstractmethod
    def norm_of_sum(self, name: str, residual: Residual, weight: np.ndarray) -> tuple[Residual, str]:
        """Adds the residual up and norms it; returns the residual, with nothing left to add, and the normed value."""

    @abstractmethod
    def attention(self, index: int, mixer: Attention, x: str, projections: list[Matrix]) -> str:
        """Adds attention from the normed hidden state to the heads' outputs side by side; projections are q, k, v."""

    @abstractmethod
    def norm(self, name: str, x: str, weight: np.ndarray) -> str:
        """Adds an RMS norm over the last axis."""

    def gate_and_up(self, x: str, matrices: list[Matrix]) -> tuple[str, str]:
        """Adds the two matrices that a gated ffn begins with."""
        gate, up = (self.linear(matrix, x, f"{matrix.name}.projected") for matrix in matrices)
        return gate, up

    def add(self, residual: Residual) -> str:
        """Adds the residual up."""
        if residual.addend is None:
            return residual.value
        return self.graph.node("Add", [residual.value, residual.addend], residual.name)

    def heads(
        self, index: int, mixer: Attention, x: str, projections: list[Matrix], values: str | None = None
    ) -> dict[str, str]:
        """Adds queries, keys and values by head, BHTD, by their letters; `values` is the name of the last."""
        graph, prefix = self.graph, f"model.layers.{index}.self_attn"
        states: dict[str, str] = {}
        for name, matrix in zip("qkv", projections, strict=True):
            num_heads = self.model.num_heads if name == "q" else mixer.num_kv_heads
            shape = graph.constant(f"shape_{num_heads}_heads", np.array([0, 0, num_heads, self.model.head_dim]))
            projected = self.linear(matrix, x, f"{matrix.name}.projected")
            state = graph.node("Reshape", [projected, shape], f"{prefix}.{name}_heads")
            if matrix.norm is not None:
                state = self.norm(f"{prefix}.{name}_norm", state, matrix.norm)
            by_head = values if name == "v" and values is not None else f"{prefix}.{name}_BHTD"
            states[name] = graph.node("Transpose", [state], by_head, perm=[0, 2, 1, 3])
        return states

    def side_by_side(self, index: int, attended: str) -> str:
        """Adds the way back from heads, BHTD, to what they say of each token."""
        graph, prefix = self.graph, f"model.layers.{index}.self_attn"
        by_token = graph.node("Transpose", [attended], f"{prefix}.by_token", perm=[0, 2, 1, 3])
        flat_shape = graph.constant("shape_flat", np.array([0, 0, self.model.num_heads * self.model.head_dim]))
        return graph.node("Reshape", [by_token, flat_shape], f"{prefix}.flat")

    def cache(self, index: int, mixer: Attention, word: str) -> tuple[str, str]:
        """Declares a layer's cache of keys or values; returns the names before and behind."""
        past, present = f"past_{word}_{index}", f"present_{word}_{index}"
        shape: list[Dimension] = ["batch", mixer.num_kv_heads, self.held[index].slots, self.model.head_dim]
        self.graph.input(past, self.graph.activations, shape)
        self.graph.output(present, self.graph.activations, shape)
        return past, present


def fused_norm(graph: Graph, name: str, x: str, weight: np.ndarray, epsilon: float) -> str:
    """Adds an RMS norm over the last axis as one node."""
    scale = graph.floats(f"{name}.weight", weight)
    return graph.node("RMSNormalization", [x, scale], f"{name}.normed", axis=-1, epsilon=epsilon)


def plain_linear(graph: Graph, matrix: Matrix, x: str, output: str) -> str:
    """Adds x·Wᵀ + b by ONNX's own operators, integers behind a blocked DequantizeLinear."""
    stored = graph.matrix(f"{matrix.name}.weight", matrix.weight_NK.T, matrix.weights)
    if matrix.bias_N is None:
        return graph.node("MatMul", [x, stored], output)
    product = graph.node("MatMul", [x, stored], f"{matrix.name}.product")
    return graph.node("Add", [product, graph.floats(f"{matrix.name}.bias", matrix.bias_N)], output)
