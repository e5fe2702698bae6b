"""What our Triton kernels are, without Triton or torch: arguments, constants, grids, and which one suits a size.

One description serves all who launch them: torch, TensorRT (whose sizes may be symbols) and C++ by way of a manifest.
Tile sizes are by reasoning about registers and loads, for nobody has timed them: `benchmarks/gpu/kernels_gpu.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from blockwright.errors import InputError

Number = Literal["fp16", "bf16"]
GROUPS = (32, 64, 128)
"""Sizes of groups that the int4 kernels take."""

ROWS_AT_ONCE = (16, 32, 64)
"""Of activations in a tile of an int4 product."""

MOST_SPLITS = 64
"""Of a sequence's slots, whose results `join_splits` has in registers at once."""

_MOST_CHANNELS = 256
"""Of a head: a tile of keys and one of values must fit into shared memory."""

_WIDE = 128
"""Channels above which tiles are halved, for lack of registers, and of shared memory on sm86, sm89 and sm120."""

_PROGRAMS_PER_PROCESSOR = 4
"""So many keep a processor's loads going while one waits."""

_GROUPS_PER_SPLIT = 8
"""At least, so that a split's sums cost less than its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One that is passed at a launch."""

    name: str
    type: str
    """As Triton writes it: ``*fp16`` is a pointer, ``i32`` a whole number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One side of a grid: ceil(product of sizes / step)."""

    sizes: tuple[str, ...] = ()
    step: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How a kernel is compiled and launched."""

    function: str
    """Of `triton_int4` or `triton_attention`."""
    name: str
    """What tells it from others of the same function, fit for files."""
    arguments: tuple[Argument, ...]
    constants: tuple[tuple[str, int | float], ...]
    grid: tuple[Axis, ...]
    num_warps: int
    num_stages: int
    """Tiles under way at once."""


def extents(kernel: Kernel, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The kernel's grid at some sizes."""
    found: list[int] = []
    for axis in kernel.grid:
        product = 1
        for size in axis.sizes:
            product *= sizes[size]
        found.append(-(-product // axis.step))
    return tuple(found)


def int4_vector(number: Number, group: int, is_split: bool) -> Kernel:
    """Rows one by one, for a batch of one."""
    _check_group(group)
    return Kernel(
        function="int4_vector",
        name=f"int4_vector_{number}_g{group}{_split_mark(is_split)}",
        arguments=(
            *_linear_inputs(number),
            *_numbers("num_outputs", "num_groups", "groups_per_split"),
            _out(number, is_split),
        ),
        constants=(("GROUP", group), ("BLOCK_N", 32), ("BLOCK_G", 256 // group), ("STAGES", 4)),
        grid=(Axis(sizes=("num_outputs",), step=32), Axis(sizes=("num_splits",)), Axis(sizes=("num_rows",))),
        num_warps=4,
        num_stages=3,
    )


def int4_tiles(number: Number, group: int, is_split: bool, block_rows: int = 16) -> Kernel:
    """Rows by tiles of 16, 32 or 64."""
    _check_group(group)
    return Kernel(
        function="int4_tiles",
        name=f"int4_tiles_{number}_g{group}_m{block_rows}{_split_mark(is_split)}",
        arguments=(
            *_linear_inputs(number),
            *_numbers("num_rows", "num_outputs", "num_groups", "groups_per_split"),
            _out(number, is_split),
        ),
        constants=(("GROUP", group), ("BLOCK_M", block_rows), ("BLOCK_N", 64), ("BLOCK_G", 128 // group)),
        grid=(
            Axis(sizes=("num_outputs",), step=64),
            Axis(sizes=("num_splits",)),
            Axis(sizes=("num_rows",), step=block_rows),
        ),
        num_warps=4,
        num_stages=4,
    )


def sum_splits(number: Number) -> Kernel:
    """Adds the splits of an int4 product."""
    return Kernel(
        function="sum_splits",
        name=f"sum_splits_{number}",
        arguments=(
            Argument(name="partial", type="*fp32"),
            *_numbers("num_values", "num_splits"),
            Argument(name="out", type=f"*{number}"),
        ),
        constants=(("BLOCK", 1024),),
        grid=(Axis(sizes=("num_values",), step=1024),),
        num_warps=4,
        num_stages=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """What attention's kernels are compiled for."""

    number: Number
    head_dim: int
    heads_per_kv: int
    scale: float | None = None
    """Of scores; None for one over the root of the head's size."""

    def __post_init__(self) -> None:
        if not 16 <= self.head_dim <= _MOST_CHANNELS or self.head_dim % 8:
            raise _refused("head_dim", self.head_dim, f"a multiple of 8 from 16 to {_MOST_CHANNELS}")
        if not 1 <= self.heads_per_kv <= 64:
            raise _refused("heads_per_kv", self.heads_per_kv, "1 to 64 query heads per KV head")

    @property
    def name(self) -> str:
        """What is told in the names of kernels."""
        scaled = "" if self.scale is None else f"_x{self.scale:g}"
        return f"{self.number}_d{self.head_dim}_h{self.heads_per_kv}{scaled}"

    @property
    def constants(self) -> tuple[tuple[str, int | float], ...]:
        """What both kernels know of the heads."""
        return (
            ("SCALE", self.head_dim**-0.5 if self.scale is None else self.scale),
            ("HEAD_DIM", self.head_dim),
            ("HEADS_PER_KV", self.heads_per_kv),
            ("BLOCK_D", _power_of_two(self.head_dim)),
        )


def sparse_decode(heads: Heads, is_split: bool) -> Kernel:
    """One query per sequence over a compacted cache."""
    number = heads.number
    return Kernel(
        function="sparse_decode",
        name=f"sparse_decode_{heads.name}{_split_mark(is_split)}",
        arguments=(
            *(Argument(name=name, type=f"*{number}") for name in ("q", "k", "v")),
            Argument(name="counts", type="*i32"),
            *_numbers("num_kv_heads", "num_slots"),
            _out(number, is_split),
            Argument(name="logs", type="*fp32"),
        ),
        constants=(
            *heads.constants,
            ("BLOCK_H", max(16, _power_of_two(heads.heads_per_kv))),
            ("BLOCK_S", 64 if heads.head_dim <= _WIDE else 32),
        ),
        grid=(Axis(sizes=("batch", "num_kv_heads")), Axis(sizes=("num_splits",))),
        num_warps=4,
        num_stages=2,
    )


def join_splits(number: Number, head_dim: int) -> Kernel:
    """Joins the splits of a cache."""
    return Kernel(
        function="join_splits",
        name=f"join_splits_{number}_d{head_dim}",
        arguments=(
            *(Argument(name=name, type="*fp32") for name in ("partial", "logs")),
            *_numbers("num_splits"),
            Argument(name="out", type=f"*{number}"),
        ),
        constants=(("HEAD_DIM", head_dim), ("BLOCK_D", _power_of_two(head_dim)), ("BLOCK_SPLITS", MOST_SPLITS)),
        grid=(Axis(sizes=("batch", "num_heads")),),
        num_warps=4,
        num_stages=1,
    )


def sparse_prefill(heads: Heads) -> Kernel:
    """A prompt, or a piece of one."""
    number, tile = heads.number, 128 if heads.head_dim <= _WIDE else 64
    return Kernel(
        function="sparse_prefill",
        name=f"sparse_prefill_{heads.name}",
        arguments=(
            *(Argument(name=name, type=f"*{number}") for name in ("q", "k", "v")),
            *(Argument(name=name, type="*i32") for name in ("far", "far_before", "starts")),
            *_numbers("num_queries", "num_slots", "num_far", "num_kv_heads", "num_neighbours"),
            Argument(name="out", type=f"*{number}"),
        ),
        constants=(*heads.constants, ("BLOCK_T", tile), ("BLOCK_S", 32)),
        grid=(Axis(sizes=("num_queries",), step=tile), Axis(sizes=("batch", "num_heads"))),
        num_warps=8,  # with four, or 64 slots at once, heads of 128 spill registers on sm80 and sm120
        num_stages=2,
    )


def linear_for(number: Number, group: int, num_rows: int, is_split: bool) -> Kernel:
    """The kernel for so many rows at once."""
    if num_rows == 1:
        return int4_vector(number, group, is_split)
    fitting = (rows for rows in ROWS_AT_ONCE if num_rows <= rows)
    return int4_tiles(number, group, is_split, next(fitting, ROWS_AT_ONCE[-1]))


def linear_splits(kernel: Kernel, num_rows: int, num_outputs: int, num_groups: int, num_processors: int) -> int:
    """Into how many parts to cut the groups, where outputs and rows alone give too few programs.

    Powers of two, so that few distinct numbers occur.
    """
    sizes = {"num_rows": num_rows, "num_outputs": num_outputs, "num_splits": 1}
    across, _, along = extents(kernel, sizes)
    splits = 1
    wanted = _PROGRAMS_PER_PROCESSOR * num_processors
    while 2 * across * along * splits <= wanted and 2 * splits * _GROUPS_PER_SPLIT <= num_groups:
        splits *= 2
    return splits


def decode_splits(batch: int, num_kv_heads: int, num_slots: int, num_processors: int) -> int:
    """Into how many parts to cut the slots of each sequence, by the same reasoning; a part has 256 slots at least."""
    splits, wanted = 1, _PROGRAMS_PER_PROCESSOR * num_processors
    while splits < MOST_SPLITS and 2 * batch * num_kv_heads * splits <= wanted and 2 * splits * 256 <= num_slots:
        splits *= 2
    return splits


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _split_mark(is_split: bool) -> str:
    return "_split" if is_split else ""


def _numbers(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name=name, type="i32") for name in names)


def _linear_inputs(number: Number) -> tuple[Argument, ...]:
    types = {"x": f"*{number}", "codes": "*u8", "scales": f"*{number}"}
    return tuple(Argument(name=name, type=type_) for name, type_ in types.items())


def _out(number: Number, is_split: bool) -> Argument:
    return Argument(name="out", type="*fp32" if is_split else f"*{number}")


def _check_group(group: int) -> None:
    if group not in GROUPS:
        raise _refused("group", group, "groups of " + ", ".join(map(str, GROUPS)))


def _refused(field: str, got: Any, expected: str) -> InputError:
    return InputError(field, got=got, expected=expected, remedy="Choose such a model, or another runtime.")
