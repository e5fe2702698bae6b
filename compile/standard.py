"""The standard flavour: operators of opset 24 only.

    positions_BT              positions of the new tokens
    write_index_B             the slot where the first new token's keys and values go; where slots are so many that a
                              window's go round in fewer (`caches_of`), write_index_around_B is that of these
    mask_B1TS                 True where a token may look; one input per way in which layers hold what they reach

Shapes: B batch, T new tokens, S slots, H heads, D head size.
"""

from typing import assert_never

import numpy as np

from blockwright.compile.flavour import Matrix, Operators, Residual, fused_norm, plain_linear
from blockwright.compile.graph import Dimension, Graph
from blockwright.compile.rotary import rotary_tables
from blockwright.compile.slots import Held
from blockwright.spec import Attention, Full, Model, Reach, Window


class StandardOperators(Operators):
    """TensorScatter into the cache, Attention under a mask, blocked DequantizeLinear before MatMul."""

    def __init__(self, graph: Graph, model: Model, slots: Dimension = "slots") -> None:
        super().__init__(graph, model, slots)
        self._indices: dict[str, str] = {}
        """By their inputs' names, the values that say where new tokens go."""

    def declare_attention_inputs(self, num_positions: int) -> None:
        graph, model = self.graph, self.model
        graph.input("positions", "int64", ["batch", "tokens"])
        ways = list(dict.fromkeys(self.held.values()))
        for held in ways:
            self._declare_index(held)
        for held in ways:
            graph.input(mask_name(held.reach, held.goes_round), "bool", ["batch", 1, "tokens", held.slots])
        cosines, sines = rotary_tables(model.rope, model.head_dim, num_positions)
        graph.floats("cosines", cosines)
        graph.floats("sines", sines)

    def _declare_index(self, held: Held) -> None:
        """Declares where tokens go in caches that are held so, unless it is; the second that is declared is computed.

        TensorRT-RTX 1.7.1 builds no network in which two layers write where one input says and a later one where
        another does («uses before defs», or it crashes). It does where the other is computed, before all else; so that
        is brought within its slots, where it is anyway.
        """
        graph, name = self.graph, index_name(held)
        if name in self._indices:
            return
        self._indices[name] = graph.input(name, "int64", ["batch"])
        if len(self._indices) > 1:
            slots = graph.constant(f"{name}.slots", np.array([held.num_slots]))
            self._indices[name] = graph.node("Mod", [name, slots], f"{name}.within")
            graph.nodes.insert(0, graph.nodes.pop())

    def linear(self, matrix: Matrix, x: str, output: str) -> str:
        return plain_linear(self.graph, matrix, x, output)

    def norm(self, name: str, x: str, weight: np.ndarray) -> str:
        return fused_norm(self.graph, name, x, weight, self.model.norm_eps)

    def norm_of_sum(self, name: str, residual: Residual, weight: np.ndarray) -> tuple[Residual, str]:
        x = self.add(residual)
        return Residual(value=x), self.norm(name, x, weight)

    def attention(self, index: int, mixer: Attention, x: str, projections: list[Matrix]) -> str:
        graph, prefix, held = self.graph, f"model.layers.{index}.self_attn", self.held[index]
        states = self.heads(index, mixer, x, projections)
        for name in ("q", "k"):
            rotated = [states[name], "cosines", "sines", "positions"]
            states[name] = graph.node("RotaryEmbedding", rotated, f"{prefix}.{name}_rotated")
        for name, word in (("k", "key"), ("v", "value")):
            past, present = self.cache(index, mixer, word)
            updated = [past, states[name], self._indices[index_name(held)]]
            states[name] = graph.node("TensorScatter", updated, present, axis=2, mode="linear")
        attended = graph.node(
            "Attention",
            [states["q"], states["k"], states["v"], mask_name(held.reach, held.goes_round)],
            f"{prefix}.attended",
            scale=self.model.head_dim**-0.5,
        )
        return self.side_by_side(index, attended)


def index_name(held: Held) -> str:
    """The input that says where new tokens go in caches that are held so."""
    return "write_index_around" if held.goes_round else "write_index"


def mask_name(reach: Reach, goes_round: bool = False) -> str:
    """The mask input that layers of a reach share, those whose tokens go round in fewer slots apart."""
    return _name_of(reach) + ("_around" if goes_round else "")


def _name_of(reach: Reach) -> str:
    match reach:
        case Full():
            return "mask"
        case Window(num_tokens=num_tokens):
            return f"mask_window_{num_tokens}"
        case _:
            assert_never(reach)
