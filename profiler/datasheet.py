"""How long operators take on a device of which only the datasheet is known.

A device has units (cores, streaming multiprocessors) that work on tiles, one each at a time, in waves; a last wave that
is not full takes as long as a full one. A tile takes its products at a share of the unit's peak, smaller ones a smaller
share, after a start that fills the pipeline. One unit draws a few times its fair share of the memory's bandwidth and no
more (Little's law: so many bytes in flight, so many a latency), so that few tiles leave bandwidth unused. Work that is
split along the depth fills more units and costs a join. Products and reads overlap, nearly:

    time = launch + (products^p + reads^p)^(1/p) [+ join]        the best tile and split taken, as libraries choose

The shares are an `Efficiency`, one for each kind of operator. They are fitted for each GPU of the open tables by
`benchmarks/costmodel/datasheet.py`, and their geometric mean stands in `EFFICIENCIES`; what that is worth on a GPU that
was not among them is the interval.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import reduce
from typing import Literal, assert_never

import numpy as np
from scipy.optimize import least_squares

from blockwright.cost import Origin
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator

Kind = Literal["matmul", "prefill", "decode", "elementwise"]
Array = np.ndarray
KINDS: tuple[Kind, ...] = ("matmul", "prefill", "decode", "elementwise")

VECTOR_UNIT_FLOP_PER_S = 0.3e12
"""A unit below this works on vectors, not on matrices: a CPU core does 0.02 to 0.2 × 10¹², an SM with tensor cores 1.5
to 15 × 10¹² (bf16 peaks of datasheets, divided by the units)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What operators of a kind make of a device: shares of its ceilings, all above zero."""

    launches: float
    """The device's launch times that pass before any work."""
    bandwidth: float
    rate: float
    small_tile: float
    """Of products: the power of a tile's area that its rate goes with. Of attention: how slowly that saturates."""
    start_us: float
    overlap: float
    """The p above: 1 is one after the other, infinite is all at once."""
    reach: float
    """What one unit draws of the bandwidth, in fair shares."""
    join_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times of operators, in their order, each in the interval where it lies nine times in ten."""

    time_s: Array
    low_s: Array
    high_s: Array
    origin: Origin


PRIOR_SD = np.array([0.3, 0.15, 0.1, 0.5, 0.7, 0.4, 0.3, 0.5])
"""Of each logarithm: our judgement. With 0.3 for all, errors on GPUs left out change by at most 0.8 points."""

EFFICIENCIES: dict[Kind, Efficiency] = {
    "matmul": Efficiency(
        launches=1.28,
        bandwidth=0.818,
        rate=0.844,
        small_tile=0.038,
        start_us=0.11,
        overlap=4.0,
        reach=1.29,
        join_us=1.3,
    ),
    "prefill": Efficiency(
        launches=3.57, bandwidth=0.367, rate=0.929, small_tile=0.98, start_us=0.93, overlap=1.1, reach=1.42, join_us=1.5
    ),
    "decode": Efficiency(
        launches=2.85, bandwidth=0.883, rate=0.801, small_tile=1.05, start_us=2.7, overlap=3.1, reach=1.39, join_us=1.9
    ),
    "elementwise": Efficiency(
        launches=0.693, bandwidth=0.694, rate=0.8, small_tile=0.2, start_us=0.39, overlap=3.1, reach=1.09, join_us=1.5
    ),
}
"""What benchmarks/costmodel/datasheet.py fits: means of A100, H100, H200 and B200 (vLLM 0.14 and 0.24, bf16); of values
that are only moved, of A100 and H100 (Vidur)."""

HALF_WIDTHS: dict[Kind, float] = {"matmul": 0.3, "prefill": 0.5, "decode": 0.56, "elementwise": 0.72}
"""Of the logarithm, what held nine operators in ten of the GPU that was predicted worst from the others."""

_LEAST_BYTES_PER_S, _LEAST_UNIT_FLOP_PER_S = 2.0e12, 2.9e12
"""Of the devices that the constants come from (A100)."""

_WIDER = 0.15
"""By so much intervals grow for each e-fold below: our judgement, no such device is in the tables."""

_TILES = ((64, 64), (64, 128), (64, 256), (128, 128), (128, 256), (64, 32), (128, 32), (64, 16))
_LARGEST_TILE, _VALUES_OF_BLOCK = 128 * 256, 4096
_ROWS_OF_QUERIES, _LEAST_KEYS = (16, 64, 128), 64
"""What libraries for tensor cores are built from; a vector unit's tiles are a sixteenth of that in each direction."""


def kind_of(operator: Operator) -> Kind:
    """What its efficiency is kept under."""
    match operator:
        case Matmul():
            return "matmul"
        case Attend(new_tokens=new_tokens):
            return "decode" if new_tokens == 1 else "prefill"
        case Elementwise():
            return "elementwise"
        case _:
            assert_never(operator)


def by_kind(operators: Sequence[Operator]) -> dict[Kind, Array]:
    """Where the operators of each kind stand."""
    kinds = np.array([kind_of(operator) for operator in operators], dtype=object)
    return {kind: np.flatnonzero(kinds == kind) for kind in KINDS if (kinds == kind).any()}


def roofline_s(operators: Sequence[Operator], ceilings: Ceilings) -> Array:
    """The least that operators take: all bytes at full bandwidth, or all products at full rate."""
    flop = np.array([operator.flop for operator in operators], dtype=float)
    num_bytes = np.array([operator.num_bytes for operator in operators], dtype=float)
    rates = np.array([peak(operator, ceilings) for operator in operators])
    return np.maximum(flop / rates, num_bytes / ceilings.read_bytes_per_s.value)


def peak(operator: Operator, ceilings: Ceilings) -> float:
    """Products per second at most; values that are only moved are bound by bytes alone.

    Raises:
        InputError: the ceilings have no rate of this format.
    """
    match operator:
        case Elementwise():
            return math.inf
        case Matmul(weights=weights):
            names = (weights,)
        case Attend(bytes_per_value=size):
            names = {1: ("fp8",), 2: ("bf16", "fp16")}.get(size, ("fp32",))
        case _:
            assert_never(operator)
    for name in names:
        if name in ceilings.flop_per_s:
            return ceilings.flop_per_s[name].value
    raise InputError(
        "ceilings.flop_per_s",
        got=", ".join(sorted(ceilings.flop_per_s)),
        expected=f"the rate of {names[0]} products, for {operator}",
        remedy="Add it from the device's datasheet, or measure it.",
    )


def modelled_times(
    operators: Sequence[Operator],
    ceilings: Ceilings,
    efficiencies: dict[Kind, Efficiency] = EFFICIENCIES,
    half_widths: dict[Kind, float] = HALF_WIDTHS,
) -> Times:
    """Times by the datasheet alone.

    The half-widths are of the logarithm, on devices like those of the tables; they grow with each e-fold that this
    device's bandwidth, or the rate of its units, lies below theirs.

    Raises:
        InputError: the ceilings have no rate of an operator's format.
    """
    time_s, half = np.empty(len(operators)), np.empty(len(operators))
    for kind, at in by_kind(operators).items():
        time_s[at] = predictor([operators[i] for i in at], ceilings)(_vector(efficiencies[kind]))
        half[at] = half_widths[kind] + _WIDER * _strangeness(ceilings)
    return Times(time_s=time_s, low_s=time_s * np.exp(-half), high_s=time_s * np.exp(half), origin="modelled")


def fit_efficiency(
    operators: Sequence[Operator], times_s: Array, ceilings: Ceilings, expected: Efficiency
) -> Efficiency:
    """What explains the times of operators of one kind: near what is expected as far as they do not say otherwise."""
    predict, mean = predictor(operators, ceilings), _vector(expected)

    def residuals(parameters: Array) -> Array:
        return np.concatenate([np.log(predict(parameters) / times_s), 0.3 * (parameters - mean) / PRIOR_SD])

    # Tiles and splits make steps, so the slope is taken over 1 %; soft_l1: kernels that a library chose badly happen.
    return _efficiency(least_squares(residuals, mean, loss="soft_l1", f_scale=0.1, max_nfev=60, diff_step=1e-2).x)


def mean_efficiency(of_devices: Sequence[Efficiency]) -> Efficiency:
    """The geometric mean."""
    return _efficiency(np.mean([_vector(one) for one in of_devices], axis=0))


def sensitivity(operators: Sequence[Operator], ceilings: Ceilings, efficiency: Efficiency) -> Array:
    """By what the logarithm of times changes with that of each field of an efficiency: (operators, fields)."""
    predict, at, step = predictor(operators, ceilings), _vector(efficiency), 0.02
    return np.stack([np.log(predict(at + d) / predict(at - d)) / (2 * step) for d in step * np.eye(len(at))], axis=1)


def predictor(operators: Sequence[Operator], ceilings: Ceilings) -> Callable[[Array], Array]:
    """A function from the logarithms of an efficiency to the times of these operators, all of one kind."""
    rates = np.array([peak(operator, ceilings) for operator in operators])
    num_bytes = np.array([operator.num_bytes for operator in operators], dtype=float)
    columns = np.array([sizes(operator) for operator in operators], dtype=float).T
    work = {"matmul": _of_matmuls, "elementwise": _of_moves}.get(kind_of(operators[0]), _of_attention)

    def times_s(parameters: Array) -> Array:
        efficiency = _efficiency(parameters)
        ways = work(columns, num_bytes, rates, ceilings, efficiency)
        return reduce(np.minimum, ways) + efficiency.launches * ceilings.launch_s.value

    return times_s


def sizes(operator: Operator) -> tuple[float, ...]:
    """The extents that decide how an operator is cut into tiles: three at the most that matter to its efficiency."""
    match operator:
        case Matmul():
            return operator.rows, operator.outputs, operator.inputs
        case Attend():
            group = operator.num_heads / operator.num_kv_heads
            keys = operator.pairs / (operator.batch * operator.new_tokens)
            return operator.batch * operator.num_kv_heads, operator.new_tokens * group, keys, operator.head_dim
        case Elementwise():
            return (operator.num_values,)
        case _:
            assert_never(operator)


def _of_matmuls(columns: Array, num_bytes: Array, rates: Array, on: Ceilings, e: Efficiency) -> Iterator[Array]:
    rows, outputs, depth = columns
    for tall, wide in {shape for tile in _TILES for shape in (tile, tile[::-1])}:
        scale = np.where(_is_vector(rates, on), 1 / 16, 1.0)
        tiles = np.ceil(rows / (tall * scale)) * np.ceil(outputs / (wide * scale))
        share = e.rate * (tall * wide / _LARGEST_TILE) ** e.small_tile
        flop = 2 * tall * wide * scale**2 * depth
        for split in (1, 2, 4, 8):
            moved = num_bytes + (8 * rows * outputs * split if split > 1 else 0)  # fp32, written and read
            yield _waves(tiles * split, flop / split / share, moved, rates, on, e) + 1e-6 * e.join_us * (split > 1)


def _of_attention(columns: Array, num_bytes: Array, rates: Array, on: Ceilings, e: Efficiency) -> Iterator[Array]:
    heads, queries, keys, head_dim = columns
    results = heads * queries * head_dim
    for tall in _ROWS_OF_QUERIES:
        scale = np.where(_is_vector(rates, on), 1 / 16, 1.0)
        tiles = heads * np.ceil(queries / (tall * scale))
        share = e.rate * tall / (tall + 64 * e.small_tile)
        for split in (1, 2, 4, 8, 16, 32, 64):
            flop = 4 * tall * scale * np.maximum(keys / split, _LEAST_KEYS * scale) * head_dim / share
            moved = num_bytes + (16 * results * split if split > 1 else 0)
            time_s = _waves(tiles * split, flop, moved, rates, on, e) + 1e-6 * e.join_us * (split > 1)
            yield np.where((split > 1) & (keys / split < _LEAST_KEYS), np.inf, time_s)


def _of_moves(columns: Array, num_bytes: Array, rates: Array, on: Ceilings, e: Efficiency) -> Iterator[Array]:
    yield _waves(np.ceil(columns[0] / _VALUES_OF_BLOCK), 0 * num_bytes, num_bytes, rates, on, e)


def _waves(tiles: Array, flop_of_tile: Array, num_bytes: Array, rates: Array, on: Ceilings, e: Efficiency) -> Array:
    """Products and reads together. Where it is not known how many units there are, waves are not rounded up."""
    start_s = np.where(_is_vector(rates, on), 0.0, 1e-6 * e.start_us)
    if on.num_units is None:
        products, drawn = tiles * flop_of_tile / rates, 1.0
    else:
        units = on.num_units
        # Beyond four waves units run apart, and half a wave is lost at the end instead of a part of each.
        waves = np.where(tiles > 4 * units, tiles / units + 0.5, np.ceil(tiles / units))
        products = waves * (flop_of_tile * units / rates + start_s)
        drawn = np.minimum(1.0, e.reach * np.minimum(tiles / units, 1.0))
    reads = num_bytes / (on.read_bytes_per_s.value * e.bandwidth * drawn)
    larger = np.maximum(products, reads)
    return larger * ((products / larger) ** e.overlap + (reads / larger) ** e.overlap) ** (1 / e.overlap)


def _is_vector(rates: Array, ceilings: Ceilings) -> Array:
    return rates < VECTOR_UNIT_FLOP_PER_S * (ceilings.num_units or 1)


def _strangeness(ceilings: Ceilings) -> float:
    """E-folds below the least of the devices that the constants come from."""
    unit_flop_per_s = max(figure.value for figure in ceilings.flop_per_s.values()) / (ceilings.num_units or 1)
    below = (_LEAST_BYTES_PER_S / ceilings.read_bytes_per_s.value, _LEAST_UNIT_FLOP_PER_S / unit_flop_per_s)
    return max(0.0, *(math.log(ratio) for ratio in below))


def _vector(efficiency: Efficiency) -> Array:
    return np.log(astuple(efficiency))


def _efficiency(parameters: Array) -> Efficiency:
    named = zip([field.name for field in fields(Efficiency)], np.exp(parameters).tolist(), strict=True)
    return Efficiency(**dict(named))
