"""What a parsed network must be, before hours go into building it: TensorRT drops some things without an error.

Found with TensorRT-RTX 1.7.1: attention that is told ``is_causal`` and how many tokens are valid parses, and loses the
number; only a warning says so. Integers that TensorRT does not keep are multiplied out, and the plan grows.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from blockwright.errors import InputError
from blockwright.spec import Attention, GatedFFN, LinearFFN, LinearMixer, Model, NoOp

MOST_GROWTH = 1.1
"""How much larger than the stored weights a plan may be …"""
KERNEL_BYTES = 8_000_000
"""… beside the kernels of each profile: 5.0 to 7.4 MB with TensorRT-RTX 1.7.1. So small models tell nothing."""

_MASK = 3
"""Which input of an attention layer the mask is, behind queries, keys and values."""

_ATTENTION, _CACHE, _ROTARY, _DEQUANTISED = "ATTENTION_INPUT", "KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "DEQUANTIZE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How many layers of a kind a network must have; others may be as many as TensorRT likes."""

    num_attentions: int
    num_caches: int
    num_rotations: int
    num_integer_matrices: int


def expected_of(model: Model) -> Expected:
    """What a model's network must have."""
    num_attentions = sum(isinstance(block.mixer, Attention) for block in model.layers)
    return Expected(
        num_attentions=num_attentions,
        num_caches=2 * num_attentions,
        num_rotations=2 * num_attentions,
        num_integer_matrices=sum(
            _num_matrices(part)
            for block in model.layers
            for part in (block.mixer, block.ffn)
            if not isinstance(part, NoOp) and part.weights.group_size is not None
        ),
    )


def _num_matrices(part: Attention | LinearMixer | GatedFFN | LinearFFN) -> int:
    match part:
        case Attention():
            return 4
        case GatedFFN():
            return 3
        case LinearMixer() | LinearFFN():
            return 1


def layer_census(network: Any) -> dict[str, int]:
    """How many layers of each kind a network has."""
    return dict(sorted(Counter(layer.type.name for layer in _layers(network)).items()))


def check_network(network: Any, expected: Expected, package: str) -> None:
    """Refuses a network that lost something on the way from the graph.

    Args:
        network: a parsed INetworkDefinition.
        expected: what it must have.
        package: who parsed it, for the error.

    Raises:
        InputError: names the layer or the input.
    """
    census = layer_census(network)
    for kind, number in (
        (_ATTENTION, expected.num_attentions),
        (_CACHE, expected.num_caches),
        (_ROTARY, expected.num_rotations),
        (_DEQUANTISED, expected.num_integer_matrices),
    ):
        if census.get(kind, 0) != number:
            raise _lost(f"{census.get(kind, 0)} layers of {kind}", f"{number}, as the model has", package)
    read: set[str] = set()
    for layer in _layers(network):
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        read |= {each.name for each in inputs if each is not None}
        if layer.type.name == _ATTENTION and (len(inputs) <= _MASK or inputs[_MASK] is None):
            raise _lost(f"{layer.name} without a mask", "a mask at every attention", package)
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if name not in read:
            raise _lost(f"an input {name} that no layer reads", "every input to be read", package)


def check_plan_size(plan_bytes: int, weight_bytes: int, num_profiles: int) -> None:
    """Refuses a plan so large that its integers cannot be integers any more.

    Raises:
        InputError: it is larger than the weights as stored and the kernels of its profiles.
    """
    most = round(MOST_GROWTH * weight_bytes + num_profiles * KERNEL_BYTES)
    if plan_bytes > most:
        raise InputError(
            "plan",
            got=f"{plan_bytes / 1e6:.1f} MB",
            expected=f"at most {most / 1e6:.1f} MB, for weights of {weight_bytes / 1e6:.1f} MB",
            remedy="TensorRT did not keep the weights as they are stored. Try int4-g32, int4-g128 or fp16.",
        )


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _lost(got: str, expected: str, package: str) -> InputError:
    return InputError(
        "network",
        got=f"{got} after parsing by {package}",
        expected=expected,
        remedy="It would compute something else without saying so. Try another version of TensorRT.",
    )
