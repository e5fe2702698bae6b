"""What `blockwright compile --target tensorrt` refuses of a layer, for it and for searches, which load nothing of it.

Found by building with TensorRT-RTX 1.7.1 in the fused form. Full TensorRT is given int4 in groups of 64 and 128 only,
which is for the format asked for to say, not for the choice of blocks; what else it refuses was not tried.
``--form decomposed`` built heads of all 11 sizes that were tried, of these too.
"""

from typing import assert_never

from blockwright.count import ffn_matrices, mixer_matrices
from blockwright.spec import Attention, GatedFFN, LinearFFN, LinearMixer, Model, NoOp

LARGEST_GROUP = 128
"""Of int4. Groups of 256 were kept in one network and not in another, those of up to 128 always."""

_HEAD_MULTIPLE = 8
_LEAST_HEAD, _LARGEST_HEAD = 8, 256
"""Between these it has kernels for multiples of 8 alone, and ends with an error of its own («tactics_tiled_layout»)
for the others: tried for all even sizes up to 64 and some up to 264. A single head it always writes out."""


def layer_obstacles(model: Model, index: int) -> list[str]:
    """What stands in the way of one layer, whatever the others are, but for the scaling of positions."""
    block = model.layers[index]
    found = [format_obstacle(model, part) for part in (block.mixer, block.ffn) if not isinstance(part, NoOp)]
    if isinstance(block.mixer, Attention):
        found.append(_head_obstacle(model))
    return [reason for reason in found if reason is not None]


def network_obstacles(model: Model) -> list[str]:
    """What stands in the way of all layers together."""
    parts = (part for block in model.layers for part in (block.mixer, block.ffn))
    names = {part.weights.name for part in parts if not isinstance(part, NoOp)}
    return ["fp16 and bf16 in one network"] if {"fp16", "bf16"} <= names else []


def format_obstacle(model: Model, part: Attention | LinearMixer | GatedFFN | LinearFFN) -> str | None:
    """Why a part is not kept as it is stored; None where it is."""
    weights, word = part.weights, "a mixer" if isinstance(part, Attention | LinearMixer) else "an ffn"
    match weights.name:
        case "fp16" | "bf16":
            return None
        case "fp32":
            return f"{word} in fp32, where TensorRT's attention computes in fp16 or bf16 only"
        case "int8":
            return f"{word} in {weights}, which TensorRT multiplies out to fp16"
        case "int4":
            pass
        case _:
            assert_never(weights.name)
    assert weights.group_size is not None, "int4 has one"
    if weights.group_size > LARGEST_GROUP:
        return f"{word} in {weights}, which TensorRT does not always keep"
    matrices = mixer_matrices(model, part) if isinstance(part, Attention | LinearMixer) else ffn_matrices(model, part)
    odd = [inputs for inputs, _ in matrices if inputs % weights.group_size]
    return f"{word} in {weights} with {odd[0]} inputs, which is no whole number of groups" if odd else None


def _head_obstacle(model: Model) -> str | None:
    size = model.head_dim
    if model.num_heads == 1 or size % _HEAD_MULTIPLE == 0 or not _LEAST_HEAD < size < _LARGEST_HEAD:
        return None
    return f"heads of {size} are no multiple of {_HEAD_MULTIPLE}, where TensorRT's attention fails"
