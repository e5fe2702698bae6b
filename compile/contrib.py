"""The contrib flavour: ONNX Runtime's own operators, domain com.microsoft.

    last_slot_B               the slot of each sequence's last new token, ``seqlens_k`` of GroupQueryAttention
    total_length              tokens of the longest sequence, the new ones included
    positions_BT              only where rotary embedding stands outside GroupQueryAttention

GroupQueryAttention (onnxruntime 1.31, CPU) rotates heads whose size is a multiple of 16, norms none, and reads several
new tokens behind older ones for one sequence at a time only.

Shapes: B batch, T new tokens, N outputs, K inputs.
"""

import numpy as np
import onnx

from blockwright.compile.blocked import BITS, pack_codes, quantise_blocks
from blockwright.compile.flavour import Matrix, Operators, Residual, fused_norm
from blockwright.compile.graph import Graph
from blockwright.compile.rotary import rotary_tables
from blockwright.spec import Attention, Model, Window

DOMAIN = "com.microsoft"

_ROTATED_MULTIPLE = 16
"""Sizes of the heads that GroupQueryAttention rotates itself are multiples of this."""


class ContribOperators(Operators):
    """GroupQueryAttention and MatMulNBits; matrices that read the same input are one."""

    def __init__(self, graph: Graph, model: Model, accuracy_level: int) -> None:
        super().__init__(graph, model)
        self._accuracy_level = accuracy_level
        self._rotates_inside = model.head_dim % _ROTATED_MULTIPLE == 0

    def declare_attention_inputs(self, num_positions: int) -> None:
        graph, model = self.graph, self.model
        graph.input("last_slot", "int32", ["batch"])
        graph.input("total_length", "int32", [])
        if not self._rotates_inside:
            graph.input("positions", "int64", ["batch", "tokens"])
        cosines, sines = rotary_tables(model.rope, model.head_dim, num_positions)
        graph.constant("cosines", cosines)
        graph.constant("sines", sines)

    def linear(self, matrix: Matrix, x: str, output: str) -> str:
        return self._joined([matrix], matrix.name, x, output)

    def norm(self, name: str, x: str, weight: np.ndarray) -> str:
        return fused_norm(self.graph, name, x, weight, self.model.norm_eps)

    def norm_of_sum(self, name: str, residual: Residual, weight: np.ndarray) -> tuple[Residual, str]:
        if residual.addend is None:
            return residual, self.norm(name, residual.value, weight)
        scale = self.graph.constant(f"{name}.weight", weight.astype(np.float32))
        normed = self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [residual.value, residual.addend, scale],
            f"{name}.normed",
            more_outputs=["", "", residual.name],
            domain=DOMAIN,
            epsilon=self.model.norm_eps,
        )
        return Residual(value=residual.name), normed

    def attention(self, index: int, mixer: Attention, x: str, projections: list[Matrix]) -> str:
        model, prefix = self.model, f"model.layers.{index}.self_attn"
        (past_key, present_key), (past_value, present_value) = (self.cache(index, mixer, w) for w in ("key", "value"))
        if self._rotates_inside and not model.has_qk_norm:
            states = [self._joined(projections, f"{prefix}.qkv_proj", x, f"{prefix}.qkv"), "", ""]
        else:
            states = [
                self._prepared(prefix, name, matrix, x, model.num_heads if name == "q" else mixer.num_kv_heads)
                for name, matrix in zip("qkv", projections, strict=True)
            ]
        tables = ["cosines", "sines"] if self._rotates_inside else []
        return self.graph.node(
            "GroupQueryAttention",
            [*states, past_key, past_value, "last_slot", "total_length", *tables],
            f"{prefix}.attended",
            more_outputs=[present_key, present_value],
            domain=DOMAIN,
            num_heads=model.num_heads,
            kv_num_heads=mixer.num_kv_heads,
            scale=model.head_dim**-0.5,
            do_rotary=int(self._rotates_inside),
            local_window_size=mixer.reach.num_tokens if isinstance(mixer.reach, Window) else -1,
        )

    def _prepared(self, prefix: str, name: str, matrix: Matrix, x: str, num_heads: int) -> str:
        """Queries, keys or values side by side, normed and rotated where that is not done inside."""
        graph, head_dim = self.graph, self.model.head_dim
        state = self.linear(matrix, x, f"{matrix.name}.projected")
        if matrix.norm is not None:
            shape = graph.constant(f"shape_{num_heads}_heads", np.array([0, 0, num_heads, head_dim]))
            by_head = graph.node("Reshape", [state, shape], f"{prefix}.{name}_heads")
            normed = self.norm(f"{prefix}.{name}_norm", by_head, matrix.norm)
            flat = graph.constant(f"shape_{num_heads}_flat", np.array([0, 0, num_heads * head_dim]))
            state = graph.node("Reshape", [normed, flat], f"{prefix}.{name}_flat")
        if self._rotates_inside or name == "v":
            return state
        rotated = [state, "cosines", "sines", "positions"]
        return graph.node("RotaryEmbedding", rotated, f"{prefix}.{name}_rotated", num_heads=num_heads)

    def _joined(self, matrices: list[Matrix], name: str, x: str, output: str) -> str:
        """One product for matrices of one format, outputs side by side."""
        graph, weights = self.graph, matrices[0].weights
        biases = [m.bias_N for m in matrices if m.bias_N is not None]
        bias = graph.constant(f"{name}.bias", np.concatenate(biases)) if biases else ""
        if weights.group_size is None:
            stored = graph.matrix(f"{name}.weight", np.concatenate([m.weight_NK.T for m in matrices], axis=1), weights)
            product = graph.node("MatMul", [x, stored], f"{name}.product" if bias else output)
            return graph.node("Add", [product, bias], output) if bias else product
        quantised = [quantise_blocks(m.weight_NK.T, weights) for m in matrices]
        codes_KN, scales_GN = (np.concatenate(parts, axis=1) for parts in zip(*quantised, strict=True))
        stored = [
            graph.constant(f"{name}.weight.codes", pack_codes(codes_KN, weights)),
            graph.constant(f"{name}.weight.scales", scales_GN.T),
        ]
        return graph.node(
            "MatMulNBits",
            [x, *stored, *(["", "", bias] if bias else [])],
            output,
            domain=DOMAIN,
            K=codes_KN.shape[0],
            N=codes_KN.shape[1],
            bits=BITS[weights.name],
            block_size=weights.group_size,
            accuracy_level=self._accuracy_level,
        )


def set_accuracy_level(graph: onnx.ModelProto, accuracy_level: int) -> None:
    """Tells every MatMulNBits of a graph another level."""
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = accuracy_level
