"""What a parsed network must be, before hours go into building it: TensorRT drops some things without an error.

Found with TensorRT-RTX 1.7.1: attention that is told ``is_causal`` and how many tokens are valid parses, and loses the
number; only a warning says so. Integers that TensorRT does not keep are multiplied out, and the plan grows.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from blockwright.compile.tensorrt_package import Form, Package
from blockwright.count import ffn_matrices, mixer_matrices
from blockwright.errors import InputError
from blockwright.spec import Attention, Model, NoOp

KERNEL_BYTES = 12_000_000
"""What the kernels of a profile may take in a plan: 3.2 to 11.3 MB with TensorRT-RTX 1.7.1, more the more shapes there
are. So plans of small models do not tell how their integers are kept."""

_DOCUMENTED_GROUPS = (64, 128)
"""Of int4 in TensorRT, by its documentation, Quantization Schemes. That TensorRT-RTX 1.7.1 keeps 16 and 32 too was seen
by the size of its plans."""

_MASK = 3
"""Which input of an attention layer the mask is, behind queries, keys and values."""

_ATTENTION, _CACHE, _ROTARY, _SOFTMAX = "ATTENTION_INPUT", "KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "SOFTMAX"
_DEQUANTISED = "DEQUANTIZE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How many layers of a kind a network must have; others may be as many as TensorRT likes."""

    num_attentions: int
    num_caches: int
    num_rotations: int
    num_softmaxes: int
    """Those of attention that is written out."""
    num_integer_matrices: int
    int4_groups: tuple[int, ...]
    """Sizes of their groups."""


def expected_of(model: Model, form: Form = "fused") -> Expected:
    """What a model's network must have in a form."""
    num_layers = sum(isinstance(block.mixer, Attention) for block in model.layers)
    num_attentions = num_layers if form == "fused" else 0
    return Expected(
        num_attentions=num_attentions,
        num_caches=2 * num_attentions,
        num_rotations=2 * num_attentions,
        num_softmaxes=num_layers - num_attentions,
        num_integer_matrices=len(_int4_matrices(model)),
        int4_groups=_int4_groups(model),
    )


def int4_bytes(model: Model) -> int:
    """Of a model's codes, two in a byte; their scales aside."""
    return sum(inputs * outputs // 2 for inputs, outputs in _int4_matrices(model))


def check_groups(expected: Expected, package: Package) -> None:
    """Refuses int4 in groups that a TensorRT is not documented to keep.

    Args:
        expected: of the model.
        package: who is to build.

    Raises:
        InputError: there are such groups.
    """
    if package.name == "tensorrt":
        _check_documented(expected, package.title, "")


def check_kit_groups(expected: Expected) -> None:
    """The same of a kit that does not say which GPUs of TensorRT-RTX it is for: TensorRT may be what builds it.

    Raises:
        InputError: there are such groups.
    """
    _check_documented(expected, "a kit that TensorRT may build", ", or name GPUs of TensorRT-RTX with --for")


def _check_documented(expected: Expected, whose: str, otherwise: str) -> None:
    odd = [size for size in expected.int4_groups if size not in _DOCUMENTED_GROUPS]
    if odd:
        raise InputError(
            "--format, --head",
            got=f"int4-g{odd[0]} for {whose}",
            expected="int4 in groups of 64 or 128, as NVIDIA documents it; TensorRT-RTX takes smaller ones too",
            remedy=f"Compile layers, and --head where given, with int4-g64 or int4-g128{otherwise}.",
        )


def _int4_groups(model: Model) -> tuple[int, ...]:
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    stored = {model.head_format, *(part.weights for part in parts if not isinstance(part, NoOp))}
    return tuple(sorted(each.group_size for each in stored if each.name == "int4" and each.group_size is not None))


def _int4_matrices(model: Model) -> list[tuple[int, int]]:
    found = [(model.hidden_size, model.vocab_size)] if model.head_format.name == "int4" else []
    for block in model.layers:
        for part, matrices in (
            (block.mixer, mixer_matrices(model, block.mixer)),
            (block.ffn, ffn_matrices(model, block.ffn)),
        ):
            if not isinstance(part, NoOp) and part.weights.name == "int4":
                found += matrices
    return found


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
        (_SOFTMAX, expected.num_softmaxes),
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


def check_plan_size(plan_bytes: int, weight_bytes: int, codes_bytes: int, num_profiles: int) -> None:
    """Refuses a plan so large that int4 in it is int4 no more: as fp16 it takes four times its bytes.

    Args:
        plan_bytes: of the plan.
        weight_bytes: of all weights as the graph stores them.
        codes_bytes: of them, those of int4 codes.
        num_profiles: each brings kernels.

    Raises:
        InputError: half of what multiplying out would add is there, and more than kernels take.
    """
    most = weight_bytes + max(num_profiles * KERNEL_BYTES, 3 * codes_bytes // 2)
    if codes_bytes and plan_bytes > most:
        raise InputError(
            "plan",
            got=f"{plan_bytes / 1e6:.1f} MB",
            expected=f"at most {most / 1e6:.1f} MB, for weights of {weight_bytes / 1e6:.1f} MB",
            remedy="TensorRT did not keep int4 as it is stored. Try groups of 64 or 128, or fp16.",
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
