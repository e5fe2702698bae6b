"""Our kernels as TensorRT plugins: inputs, attributes, outputs, and the sizes that a launch takes from them.

Sizes may be symbols, for TensorRT knows them only when a plan runs; what a kernel is compiled for must be fixed. One
plugin is one kernel, so that work that is split takes two. Whole numbers are all that TensorRT passes beside tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from blockwright.compile import kernels
from blockwright.compile.kernels import Heads, Kernel, Number
from blockwright.errors import InputError

NAMESPACE = "blockwright"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a plugin is asked about."""

    shapes: Mapping[str, Sequence[Any]]
    """By input; sides are whole numbers or symbols."""
    attributes: Mapping[str, int]
    number: Number
    """Of activations."""
    divide_up: Callable[[Any, int], Any]
    """Of a symbol."""

    def side(self, name: str, index: int) -> int:
        """A side that a kernel is compiled for.

        Raises:
            InputError: it is open.
        """
        found = self.shapes[name][index]
        if isinstance(found, int):
            return found
        if not found.is_constant:
            raise InputError(
                f"{name}: side {index}",
                got="one that may change",
                expected="a fixed number, which the kernel is compiled for",
                remedy="Fix it in the network; only rows, batch, tokens and slots may be open.",
            )
        return found.constant_value()


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One of a plugin's outputs."""

    sides: tuple[Any, ...]
    is_fp32: bool
    """Or of the activations' type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin, as functions of what is given."""

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    num_outputs: int
    outputs: Callable[[Given], tuple[Output, ...]]
    kernel: Callable[[Given], Kernel]
    sizes: Callable[[Given], dict[str, Any]]
    """All numbers that the kernel's arguments and grid name."""


def product(factors: Sequence[Any]) -> Any:
    """Of numbers and symbols; a symbol can be multiplied by a number, but not a number by a symbol."""
    symbols = [each for each in factors if not isinstance(each, int)]
    number = reduce(lambda a, b: a * b, (each for each in factors if isinstance(each, int)), 1)
    if not symbols:
        return number
    found = reduce(lambda a, b: a * b, symbols)
    return found if number == 1 else found * number


def extents_of(kernel: Kernel, sizes: Mapping[str, Any], divide_up: Callable[[Any, int], Any]) -> tuple[Any, ...]:
    """The kernel's grid at sizes that may be symbols, three sides."""
    found: list[Any] = []
    for axis in kernel.grid:
        side = product([sizes[name] for name in axis.sizes])
        found.append(_divided_up(side, axis.step, divide_up))
    return (*found, 1, 1)[:3]


def _divided_up(side: Any, step: int, divide_up: Callable[[Any, int], Any]) -> Any:
    if isinstance(side, int):
        return -(-side // step)
    return side if step == 1 else divide_up(side, step)


def _linear(is_split: bool) -> Plugin:
    def outputs(given: Given) -> tuple[Output, ...]:
        sides = (*given.shapes["x"][:-1], given.shapes["codes"][0])
        return (Output(sides=(given.attributes["num_splits"], *sides) if is_split else sides, is_fp32=is_split),)

    def kernel(given: Given) -> Kernel:
        group, rows = given.attributes["group"], given.attributes["rows_at_once"]
        if rows not in (1, 16, 32, 64):
            raise InputError("rows_at_once", got=rows, expected="1, 16, 32 or 64", remedy="Choose one of these.")
        if rows == 1:
            return kernels.int4_vector(given.number, group, is_split)
        return kernels.int4_tiles(given.number, group, is_split, rows)

    def sizes(given: Given) -> dict[str, Any]:
        num_groups, num_splits = given.shapes["scales"][1], given.attributes.get("num_splits", 1)
        return {
            "num_rows": product(given.shapes["x"][:-1]),
            "num_outputs": given.shapes["codes"][0],
            "num_groups": num_groups,
            "groups_per_split": _divided_up(num_groups, num_splits, given.divide_up),
            "num_splits": num_splits,
        }

    return Plugin(
        name="int4_linear_split" if is_split else "int4_linear",
        inputs=("x", "codes", "scales"),
        attributes=("group", "rows_at_once", "num_splits") if is_split else ("group", "rows_at_once"),
        num_outputs=1,
        outputs=outputs,
        kernel=kernel,
        sizes=sizes,
    )


def _sum() -> Plugin:
    def sizes(given: Given) -> dict[str, Any]:
        num_splits, *sides = given.shapes["partial"]
        return {"num_values": product(sides), "num_splits": num_splits}

    return Plugin(
        name="sum_splits",
        inputs=("partial",),
        attributes=("is_bf16",),
        num_outputs=1,
        outputs=lambda given: (Output(sides=tuple(given.shapes["partial"][1:]), is_fp32=False),),
        kernel=lambda given: kernels.sum_splits(given.number),
        sizes=sizes,
    )


def _heads(given: Given) -> Heads:
    num_heads, num_kv_heads = given.side("q", 1), given.side("k", 1)
    return Heads(number=given.number, head_dim=given.side("k", 3), heads_per_kv=num_heads // num_kv_heads)


def _decode(is_split: bool) -> Plugin:
    def outputs(given: Given) -> tuple[Output, ...]:
        batch, heads, channels = given.shapes["q"]
        splits = given.attributes.get("num_splits", 1)
        out = (batch, heads, splits, channels) if is_split else (batch, heads, channels)
        return Output(sides=out, is_fp32=is_split), Output(sides=(batch, heads, splits), is_fp32=True)

    def sizes(given: Given) -> dict[str, Any]:
        batch, num_kv_heads, num_slots, _ = given.shapes["k"]
        num_splits = given.attributes.get("num_splits", 1)
        return {"batch": batch, "num_kv_heads": num_kv_heads, "num_slots": num_slots, "num_splits": num_splits}

    return Plugin(
        name="sparse_decode_split" if is_split else "sparse_decode",
        inputs=("q", "k", "v", "counts"),
        attributes=("num_splits",) if is_split else (),
        num_outputs=2,
        outputs=outputs,
        kernel=lambda given: kernels.sparse_decode(_heads(given), is_split),
        sizes=sizes,
    )


def _join() -> Plugin:
    def outputs(given: Given) -> tuple[Output, ...]:
        batch, heads, _, channels = given.shapes["partial"]
        return (Output(sides=(batch, heads, channels), is_fp32=False),)

    def sizes(given: Given) -> dict[str, Any]:
        batch, num_heads, num_splits, _ = given.shapes["partial"]
        return {"batch": batch, "num_heads": num_heads, "num_splits": num_splits}

    return Plugin(
        name="join_splits",
        inputs=("partial", "logs"),
        attributes=("is_bf16",),
        num_outputs=1,
        outputs=outputs,
        kernel=lambda given: kernels.join_splits(given.number, given.side("partial", 3)),
        sizes=sizes,
    )


def _prefill() -> Plugin:
    def sizes(given: Given) -> dict[str, Any]:
        batch, num_heads, num_queries, _ = given.shapes["q"]
        return {
            "batch": batch,
            "num_heads": num_heads,
            "num_queries": num_queries,
            "num_kv_heads": given.shapes["k"][1],
            "num_slots": given.shapes["k"][2],
            "num_far": given.shapes["far"][1],
            "num_neighbours": given.attributes["num_neighbours"],
        }

    return Plugin(
        name="sparse_prefill",
        inputs=("q", "k", "v", "far", "far_before", "starts"),
        attributes=("num_neighbours",),
        num_outputs=1,
        outputs=lambda given: (Output(sides=tuple(given.shapes["q"]), is_fp32=False),),
        kernel=lambda given: kernels.sparse_prefill(_heads(given)),
        sizes=sizes,
    )


PLUGINS = (
    *(_linear(is_split) for is_split in (False, True)),
    _sum(),
    *(_decode(is_split) for is_split in (False, True)),
    _join(),
    _prefill(),
)
