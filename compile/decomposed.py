"""The decomposed flavour: elementary operators of opset 21 only, for TensorRT from 10.3 (JetPack 6) to before 10.15.

Nothing there updates a cache in place, and a graph that returned its caches would copy them whole at every step. So
this one reads them and returns the new tokens' keys and values alone, which the caller writes to their places
afterwards:

    positions_BT              positions of the new tokens
    mask_past_B1TS            True where a token may look among the slots, which hold what came before this run only;
                              one input per reach that the layers have, as the next
    mask_new_B1TT             True where a token may look among the new tokens
    new_key_i, new_value_i    outputs, (B, KV heads, T, head size): what belongs at the tokens' positions in past_…

Scores over slots and over new tokens are two products, then one softmax over both; so are the values. Slots that
nobody may see must hold numbers, for 0 times infinity is none. Queries that share keys are rows of one product, so keys
are read once. Norms and softmax compute in fp32 whatever the graph does, as transformers computes them. Where TensorRT
fuses none of it, the scores of a chunk stand in memory: 302 MB in fp32 for 32 heads, 512 tokens and 4096 slots.

What is written is what ONNX-TensorRT documents, so far as its lists of operators (docs/operators.md) were at hand:
those of TensorRT 10.6, opsets 9 to 22, and of 10.15; not that of 10.3. The former has all these operators in FP32,
FP16 and BF16, DequantizeLinear for INT8, FP8 and INT4 with a zero point of zero, axes of ReduceMean and Unsqueeze only
as initializers; it has no RMSNormalization, RotaryEmbedding, TensorScatter, Attention, BitwiseAnd or BitShift. From
10.3 to 10.6 its changelog adds STFT, three windows, axes of Pad that are tensors, and ONNX 1.17 with opset 22: none of
it is used here. INT4 came with 10.0. Nobody has built or run a graph of this flavour with TensorRT 10.3.

Shapes: B batch, T new tokens, S slots, H heads, J heads of keys and values, G = H / J queries per key, D head size.
"""

import numpy as np

from blockwright.compile.flavour import Matrix, Operators, Residual, plain_linear
from blockwright.compile.graph import Dimension, Graph
from blockwright.compile.rotary import rotary_tables
from blockwright.compile.slots import Held
from blockwright.compile.standard import mask_name
from blockwright.spec import Attention, Model, Reach

_HIDDEN = -1e30
"""Added to scores that nobody may see: beside any other score its exponential is 0, and the sum stays a number."""

_TO_THE_END = np.iinfo(np.int64).max


class DecomposedOperators(Operators):
    """Products, a softmax and elementwise operators; no cache is returned."""

    def __init__(self, graph: Graph, model: Model, slots: int) -> None:
        super().__init__(graph, model, slots)

    def declare_attention_inputs(self, num_positions: int) -> None:
        graph, model = self.graph, self.model
        graph.input("positions", "int64", ["batch", "tokens"])
        declared: set[Reach] = set()
        for held in dict.fromkeys(self.held.values()):
            graph.input(past_mask_name(held.reach, held.goes_round), "bool", ["batch", 1, "tokens", held.slots])
            if held.reach not in declared:
                graph.input(new_mask_name(held.reach), "bool", ["batch", 1, "tokens", "tokens"])
            declared.add(held.reach)
            self._add_bias(held)
        for name, bias, num_queries in dict.fromkeys(map(self._bias_of, self.held)):
            graph.node("Concat", [bias] * num_queries, name, axis=2)
        one = graph.constant("one", np.array([1]))
        cosines, sines = rotary_tables(model.rope, model.head_dim, num_positions)
        for name, table_PR in (("cosines", cosines), ("sines", sines)):
            table = graph.floats(name, np.concatenate([table_PR, table_PR], axis=1))
            rows_BTD = graph.node("Gather", [table, "positions"], f"{name}.rows")
            graph.node("Unsqueeze", [rows_BTD, one], f"{name}.B1TD")

    def linear(self, matrix: Matrix, x: str, output: str) -> str:
        return plain_linear(self.graph, matrix, x, output)

    def norm(self, name: str, x: str, weight: np.ndarray) -> str:
        graph = self.graph
        wide = self._wide(x, f"{name}.wide")
        squares = graph.node("Mul", [wide, wide], f"{name}.squares")
        last = graph.constant("last_axis", np.array([-1]))
        mean = graph.node("ReduceMean", [squares, last], f"{name}.mean_square", keepdims=1)
        epsilon = graph.constant("norm_epsilon", np.array(self.model.norm_eps, dtype=np.float32))
        length = graph.node("Sqrt", [graph.node("Add", [mean, epsilon], f"{name}.above_zero")], f"{name}.length")
        shortened = self._narrow(graph.node("Div", [wide, length], f"{name}.shortened"), f"{name}.narrow")
        return graph.node("Mul", [shortened, graph.floats(f"{name}.weight", weight)], f"{name}.normed")

    def norm_of_sum(self, name: str, residual: Residual, weight: np.ndarray) -> tuple[Residual, str]:
        x = self.add(residual)
        return Residual(value=x), self.norm(name, x, weight)

    def attention(self, index: int, mixer: Attention, x: str, projections: list[Matrix]) -> str:
        graph, model, prefix = self.graph, self.model, f"model.layers.{index}.self_attn"
        past_key, new_key = self._declare(index, mixer, "key")
        past_value, new_value = self._declare(index, mixer, "value")
        states = self.heads(index, mixer, x, projections, values=new_value)
        self._rotated(states["k"], new_key)
        rotated = self._rotated(states["q"], f"{prefix}.q_rotated")
        # Scaled before the product, whose sums could be too large for fp16.
        scale = graph.floats("attention_scale", np.array(model.head_dim**-0.5))
        scaled_BHTD = graph.node("Mul", [rotated, scale], f"{prefix}.q_scaled")
        shape = graph.constant(
            f"shape_{mixer.num_kv_heads}_groups", np.array([0, mixer.num_kv_heads, -1, model.head_dim])
        )
        q_BJRD = graph.node("Reshape", [scaled_BHTD, shape], f"{prefix}.q_by_key")  # R = G·T rows, token by token
        scores = []
        for part, key in (("past", past_key), ("new", new_key)):
            columns = graph.node("Transpose", [key], f"{prefix}.{part}_columns", perm=[0, 1, 3, 2])
            scores.append(graph.node("MatMul", [q_BJRD, columns], f"{prefix}.{part}_scores"))
        weights = self._weights(index, scores)
        sums = [
            graph.node("MatMul", [part, value], f"{part}_sum")
            for part, value in zip(self._parts(index, weights), (past_value, new_value), strict=True)
        ]
        shape = graph.constant("shape_of_heads", np.array([0, model.num_heads, -1, model.head_dim]))
        attended = graph.node("Add", sums, f"{prefix}.attended_by_key")
        return self.side_by_side(index, graph.node("Reshape", [attended, shape], f"{prefix}.attended"))

    def _declare(self, index: int, mixer: Attention, word: str) -> tuple[str, str]:
        """The names of a layer's cache of keys or values, and of what is to be added to it."""
        past, new = f"past_{word}_{index}", f"new_{word}_{index}"
        graph, (heads, size) = self.graph, (mixer.num_kv_heads, self.model.head_dim)
        graph.input(past, graph.activations, ["batch", heads, self.held[index].slots, size])
        tokens: list[Dimension] = ["batch", heads, "tokens", size]
        graph.output(new, graph.activations, tokens)
        return past, new

    def _rotated(self, x: str, output: str) -> str:
        """Adds rotary embedding: each half of a head turns against the other."""
        graph, half = self.graph, self.model.head_dim // 2
        sizes = graph.constant("half_sizes", np.array([half, half]))
        first, second = f"{output}.first", f"{output}.second"
        graph.node("Split", [x, sizes], first, more_outputs=[second], axis=3)
        turned = graph.node(
            "Concat", [graph.node("Neg", [second], f"{output}.negative"), first], f"{output}.turned", axis=3
        )
        along = graph.node("Mul", [x, "cosines.B1TD"], f"{output}.along")
        across = graph.node("Mul", [turned, "sines.B1TD"], f"{output}.across")
        return graph.node("Add", [along, across], output)

    def _weights(self, index: int, scores: list[str]) -> str:
        """Adds the softmax over slots and new tokens side by side, weights_BJRU, U = S + T."""
        graph, prefix = self.graph, f"model.layers.{index}.self_attn"
        both = graph.node("Concat", scores, f"{prefix}.scores", axis=3)
        bias, _, _ = self._bias_of(index)
        seen = graph.node("Add", [self._wide(both, f"{prefix}.scores_wide"), bias], f"{prefix}.seen_scores")
        return self._narrow(graph.node("Softmax", [seen], f"{prefix}.weights_wide", axis=-1), f"{prefix}.weights")

    def _add_bias(self, held: Held) -> None:
        """Adds what scores that nobody may see are lowered by, bias_B1TU in fp32."""
        graph = self.graph
        seen = graph.constant("bias_seen", np.array(0, dtype=np.float32))
        hidden = graph.constant("bias_hidden", np.array(_HIDDEN, dtype=np.float32))
        whole = mask_name(held.reach, held.goes_round)
        masks = [past_mask_name(held.reach, held.goes_round), new_mask_name(held.reach)]
        parts = [graph.node("Where", [mask, seen, hidden], f"{whole}.{mask}.bias") for mask in masks]
        graph.node("Concat", parts, f"{whole}.bias", axis=3)

    def _bias_of(self, index: int) -> tuple[str, str, int]:
        """A layer's bias_B1RU, that of its mask, and how often it repeats it: once for each query of a key."""
        mixer, held = self.model.layers[index].mixer, self.held[index]
        assert isinstance(mixer, Attention), "others hold nothing"
        num_queries = self.model.num_heads // mixer.num_kv_heads
        bias = f"{mask_name(held.reach, held.goes_round)}.bias"
        return f"{bias}_{num_queries}", bias, num_queries

    def _parts(self, index: int, weights: str) -> list[str]:
        """Adds the cut between the slots' weights and the new tokens'."""
        graph, prefix, slots = self.graph, f"model.layers.{index}.self_attn", self.held[index].slots
        first, end = graph.constant("slots_first", np.array([0])), graph.constant(f"slots_{slots}", np.array([slots]))
        last, axis = (
            graph.constant("tokens_end", np.array([_TO_THE_END])),
            graph.constant("weights_axis", np.array([3])),
        )
        return [
            graph.node("Slice", [weights, first, end, axis], f"{prefix}.past_weights"),
            graph.node("Slice", [weights, end, last, axis], f"{prefix}.new_weights"),
        ]

    def _wide(self, x: str, name: str) -> str:
        return x if self.graph.activations == "float32" else self.graph.cast(x, "float32", name)

    def _narrow(self, x: str, name: str) -> str:
        return x if self.graph.activations == "float32" else self.graph.cast(x, self.graph.activations, name)


def past_mask_name(reach: Reach, goes_round: bool = False) -> str:
    """The mask over slots that layers of a reach share, those whose tokens go round in fewer slots apart."""
    return mask_name(reach, goes_round).replace("mask", "mask_past", 1)


def new_mask_name(reach: Reach) -> str:
    """The mask among new tokens that layers of a reach share."""
    return mask_name(reach).replace("mask", "mask_new", 1)
