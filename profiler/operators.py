"""What a model does at one point, operator by operator: the floating-point operations and the bytes that take time.

These are counts of what any implementation must do. Weights are read once, activations are read and written once
around each operator, attention reads its keys and values once. What a device takes beyond that is its utilisation.
"""

from dataclasses import dataclass
from typing import assert_never

from blockwright.count import ffn_matrices, matrix_bytes, mixer_matrices
from blockwright.hw_profiles.profile import LocalBackend, Point
from blockwright.spec import FFN, Attention, Format, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """Rows of activations times a matrix of weights."""

    rows: int
    inputs: int
    outputs: int
    weights: str
    """A format's name: ``fp32``, ``bf16``, ``fp8``, ``int4-g32``."""
    weight_bytes: int
    bytes_per_value: int
    """Of an activation."""

    @property
    def flop(self) -> int:
        """Floating-point operations: a multiplication and an addition each."""
        return 2 * self.rows * self.inputs * self.outputs

    @property
    def num_bytes(self) -> int:
        """Bytes read and written."""
        return self.weight_bytes + self.bytes_per_value * self.rows * (self.inputs + self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend:
    """Softmax attention of new tokens over the cache of each sequence, the new tokens included."""

    batch: int
    new_tokens: int
    context: int
    """Tokens that the last of the new ones attends to; of a prompt, fewer than the new ones where a window ends it."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bytes_per_value: int
    """Of an activation."""
    kv_bytes_per_value: int
    is_causal: bool = True
    """Whether an earlier one of the new tokens attends to fewer; where not, masked pairs are worked on all the same."""

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key, over all sequences, of one head."""
        growing = min(self.new_tokens, self.context)  # beyond them each of the new tokens fills the window
        masked = growing * (growing - 1) // 2 if self.is_causal else 0
        return self.batch * (self.new_tokens * self.context - masked)

    @property
    def flop(self) -> int:
        """Floating-point operations of the two products; the softmax is left out."""
        return 4 * self.pairs * self.num_heads * self.head_dim

    @property
    def num_bytes(self) -> int:
        """Queries and results, and the keys and values once, those of every new token among them."""
        rows = 2 * self.batch * self.new_tokens * self.num_heads * self.head_dim
        cache = 2 * self.batch * max(self.context, self.new_tokens) * self.num_kv_heads * self.head_dim
        return self.bytes_per_value * rows + self.kv_bytes_per_value * cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise:
    """Norms, activations, rotary embeddings and residual sums: they move values and hardly count."""

    num_values: int
    """Read and written."""
    bytes_per_value: int

    @property
    def flop(self) -> int:
        """One for each value."""
        return self.num_values

    @property
    def num_bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_per_value * self.num_values


Operator = Matmul | Attend | Elementwise


def mixer_operators(model: Model, mixer: Mixer, point: Point) -> list[Operator]:
    """What one layer's mixer does, its norm and residual sum included, in the runtime of its weights' format."""
    if isinstance(mixer, NoOp):
        return []
    rows, size = point.batch * point.new_tokens, _bytes_per_value(mixer.weights)
    matmuls = [_matmul(rows, shape, mixer.weights) for shape in mixer_matrices(model, mixer)]
    around = Elementwise(num_values=5 * rows * model.hidden_size, bytes_per_value=size)
    match mixer:
        case LinearMixer():
            return [around, *matmuls]
        case Attention(num_kv_heads=num_kv_heads, reach=reach):
            context = min(point.slots, reach.num_tokens) if isinstance(reach, Window) else point.slots
            attend = Attend(
                batch=point.batch,
                new_tokens=point.new_tokens,
                context=context,
                num_heads=model.num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=model.head_dim,
                bytes_per_value=size,
                kv_bytes_per_value=size,  # both runtimes keep keys and values as they come out of their products
                is_causal=runtime_of(mixer.weights) == "torch" and _are_fewer_for_earlier(point, context),
            )
            rotary = Elementwise(
                num_values=2 * rows * (model.num_heads + num_kv_heads) * model.head_dim, bytes_per_value=size
            )
            return [around, *matmuls, rotary, attend]
        case _:
            assert_never(mixer)


def ffn_operators(model: Model, ffn: FFN, point: Point) -> list[Operator]:
    """What one layer's ffn does, its norm and residual sum included."""
    if isinstance(ffn, NoOp):
        return []
    rows, size = point.batch * point.new_tokens, _bytes_per_value(ffn.weights)
    matmuls = [_matmul(rows, shape, ffn.weights) for shape in ffn_matrices(model, ffn)]
    around = Elementwise(num_values=5 * rows * model.hidden_size, bytes_per_value=size)
    match ffn:
        case LinearFFN():
            return [around, *matmuls]
        case GatedFFN(width=width):
            return [around, *matmuls, Elementwise(num_values=3 * rows * width, bytes_per_value=size)]
        case _:
            assert_never(ffn)


def shared_operators(model: Model, point: Point) -> list[Operator]:
    """What is done outside the layers: the embedding's rows, the last norm, and the head for one token a sequence."""
    size = _bytes_per_value(model.embedding_weights)
    moved = Elementwise(num_values=4 * point.batch * point.new_tokens * model.hidden_size, bytes_per_value=size)
    return [moved, _matmul(point.batch, (model.hidden_size, model.vocab_size), model.head_format)]


def runtime_of(weights: Format) -> LocalBackend:
    """Who runs weights of a format in this version: torch floats of 16 bits, ONNX Runtime fp32 and integers.

    The engine's attention works on every slot of its cache behind a mask; torch's leaves out what a prompt's earlier
    tokens do not see.
    """
    return "torch" if weights.name in ("fp16", "bf16") else "onnxruntime"


def _are_fewer_for_earlier(point: Point, context: int) -> bool:
    """Whether an earlier one of the new tokens attends to fewer: these are taken for the last ones of the slots.

    A point does not say which chunk of a prompt it is, so that no chunk is counted short. A window that some tokens
    before the new ones reach into counts as full for all.
    """
    return point.new_tokens == 1 or context == point.slots or point.new_tokens == point.slots


def _matmul(rows: int, shape: tuple[int, int], weights: Format) -> Matmul:
    return Matmul(
        rows=rows,
        inputs=shape[0],
        outputs=shape[1],
        weights=str(weights),
        weight_bytes=matrix_bytes(*shape, weights),
        bytes_per_value=_bytes_per_value(weights),
    )


def _bytes_per_value(weights: Format) -> int:
    """Of an activation beside weights in a format: ONNX Runtime works on integers in fp32."""
    return 2 if runtime_of(weights) == "torch" else 4
