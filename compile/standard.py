"""The standard flavour: operators of opset 24 only.

    positions_BT              positions of the new tokens
    write_index_B             the slot where the first new token's keys and values go
    mask_B1TS                 True where a token may look; one input per reach that the layers have

Shapes: B batch, T new tokens, S slots, H heads, D head size.
"""

from typing import assert_never

import numpy as np

from blockwright.compile.flavour import Matrix, Operators, Residual
from blockwright.compile.rotary import rotary_tables
from blockwright.spec import Attention, Full, Reach, Window


class StandardOperators(Operators):
    """TensorScatter into the cache, Attention under a mask, blocked DequantizeLinear before MatMul."""

    def declare_attention_inputs(self, num_positions: int) -> None:
        graph, model = self.graph, self.model
        graph.input("positions", "int64", ["batch", "tokens"])
        graph.input("write_index", "int64", ["batch"])
        for reach in {b.mixer.reach: None for b in model.layers if isinstance(b.mixer, Attention)}:
            graph.input(mask_name(reach), "bool", ["batch", 1, "tokens", self.slots])
        cosines, sines = rotary_tables(model.rope, model.head_dim, num_positions)
        graph.floats("cosines", cosines)
        graph.floats("sines", sines)

    def linear(self, matrix: Matrix, x: str, output: str) -> str:
        graph = self.graph
        stored = graph.matrix(f"{matrix.name}.weight", matrix.weight_NK.T, matrix.weights)
        if matrix.bias_N is None:
            return graph.node("MatMul", [x, stored], output)
        product = graph.node("MatMul", [x, stored], f"{matrix.name}.product")
        return graph.node("Add", [product, graph.floats(f"{matrix.name}.bias", matrix.bias_N)], output)

    def norm_of_sum(self, name: str, residual: Residual, weight: np.ndarray) -> tuple[Residual, str]:
        x = self.add(residual)
        return Residual(value=x), self.norm(name, x, weight)

    def attention(self, index: int, mixer: Attention, x: str, projections: list[Matrix]) -> str:
        graph, model = self.graph, self.model
        prefix = f"model.layers.{index}.self_attn"
        states: dict[str, str] = {}
        for name, matrix in zip("qkv", projections, strict=True):
            num_heads = model.num_heads if name == "q" else mixer.num_kv_heads
            shape = graph.constant(f"shape_{num_heads}_heads", np.array([0, 0, num_heads, model.head_dim]))
            projected = self.linear(matrix, x, f"{matrix.name}.projected")
            state = graph.node("Reshape", [projected, shape], f"{prefix}.{name}_heads")
            if matrix.norm is not None:
                state = self.norm(f"{prefix}.{name}_norm", state, matrix.norm)
            states[name] = graph.node("Transpose", [state], f"{prefix}.{name}_BHTD", perm=[0, 2, 1, 3])
        for name in ("q", "k"):
            rotated = [states[name], "cosines", "sines", "positions"]
            states[name] = graph.node("RotaryEmbedding", rotated, f"{prefix}.{name}_rotated")
        for name, word in (("k", "key"), ("v", "value")):
            past, present = self.cache(index, mixer, word)
            updated = [past, states[name], "write_index"]
            states[name] = graph.node("TensorScatter", updated, present, axis=2, mode="linear")
        attended = graph.node(
            "Attention",
            [states["q"], states["k"], states["v"], mask_name(mixer.reach)],
            f"{prefix}.attended",
            scale=model.head_dim**-0.5,
        )
        by_token = graph.node("Transpose", [attended], f"{prefix}.by_token", perm=[0, 2, 1, 3])
        flat_shape = graph.constant("shape_flat", np.array([0, 0, model.num_heads * model.head_dim]))
        return graph.node("Reshape", [by_token, flat_shape], f"{prefix}.flat")

    def gate_and_up(self, prefix: str, x: str, matrices: list[Matrix]) -> tuple[str, str]:
        gate, up = (self.linear(matrix, x, f"{matrix.name}.projected") for matrix in matrices)
        return gate, up


def mask_name(reach: Reach) -> str:
    """The mask input that layers of a reach share."""
    match reach:
        case Full():
            return "mask"
        case Window(num_tokens=num_tokens):
            return f"mask_window_{num_tokens}"
        case _:
            assert_never(reach)
