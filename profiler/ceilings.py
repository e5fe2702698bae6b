"""The most that the runtime gets out of this machine: the measure for everything else.

Everything is asked of ONNX Runtime as engines ask it: integer weights go through the same graph as an engine's, so that
what is measured for them is MatMulNBits. Rates and their intervals are those of the time when the
machine is calm (see `clock`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from onnx import TensorProto, helper

from blockwright.compile.engine import SessionSettings
from blockwright.compile.graph import Graph
from blockwright.compile.session import make_session
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.device import cache_bytes, this_device
from blockwright.profiler.clock import Effort, Timing, time_in_turn
from blockwright.profiler.reference import Reference
from blockwright.spec import FP32, Format

_COLUMNS = 4096
_ROWS = 16384  # with the columns 256 MiB in fp32: beyond any cache
_MATRIX_ROWS, _SIZE = 256, 1024  # measured on a 2-core Zen 3: 1024 rows are 1 % faster in four times the time
_FORMATS = (FP32, Format(name="int8", group_size=32), Format(name="int4", group_size=32))
_CACHED = (256, 512, 1024)
"""Sides of square fp32 matrices of 256 KiB to 4 MiB; the best of them counts, wherever a machine keeps it."""
_CHAIN = 32
"""Products in a row, or 4 times as many operators that do nothing: entering the runtime does not show beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingCase:
    """A graph whose time says what the device does at most."""

    name: str
    graph: Graph
    shape: tuple[int, int]
    """Of its input, rows of fp32."""


def ceiling_cases() -> list[CeilingCase]:
    """Large and small products, and an operator that does nothing."""
    streamed = CeilingCase(name="stream", graph=_product(1, (_ROWS, _COLUMNS)), shape=(1, _ROWS))
    near = [CeilingCase(name=f"near {size}", graph=_chain(size), shape=(1, size)) for size in _CACHED]
    rates = [
        CeilingCase(
            name=f"rate {weights}",
            graph=_product(_MATRIX_ROWS, (_SIZE, _SIZE), weights),
            shape=(_MATRIX_ROWS, _SIZE),
        )
        for weights in _FORMATS
    ]
    return [streamed, *near, *rates, CeilingCase(name="nothing", graph=_nothing(), shape=(1, 1))]


def ceilings_of(
    timings: Mapping[str, Timing],
    how: str,
    *,
    num_units: int | None,
    cache_bytes: int | None,
    reference_s: float | None,
) -> Ceilings:
    """What the times of `ceiling_cases` say.

    Args:
        timings: by the names of the cases.
        how: when and in what they were measured, for the source of every figure.
        num_units: cores.
        cache_bytes: the last level of cache.
        reference_s: see `reference`.
    """
    near = {4 * size * size: timings[f"near {size}"] for size in _CACHED}
    best_bytes, best = max(near.items(), key=lambda pair: pair[0] / pair[1].calm_s)
    rates = {
        str(weights): _rate(
            2 * _MATRIX_ROWS * _SIZE**2,
            timings[f"rate {weights}"],
            f"{_MATRIX_ROWS}×{_SIZE} by {_SIZE}×{_SIZE} in {weights}; {how}",
        )
        for weights in _FORMATS
    }
    return Ceilings(
        read_bytes_per_s=_rate(
            4 * _ROWS * _COLUMNS, timings["stream"], f"a vector by {_ROWS}×{_COLUMNS} in fp32; {how}"
        ),
        flop_per_s=rates,
        launch_s=_figure(
            timings["nothing"], 1 / (4 * _CHAIN), f"the sine of one number, {4 * _CHAIN} times in a row; {how}"
        ),
        num_units=num_units,
        cache_bytes=cache_bytes,
        cache_read_bytes_per_s=_rate(
            best_bytes * _CHAIN, best, f"{_CHAIN} times a vector by {best_bytes >> 10} KiB in fp32; {how}"
        ),
        reference_s=reference_s,
    )


def measure_ceilings(session: SessionSettings, effort: Effort, reference: Reference) -> Ceilings:
    """Times all of `ceiling_cases` here, and adds the reference's best.

    The power stays unknown here (`energy.measure_power`).
    """
    return ceilings_of(
        {case.name: _time(case, session, effort) for case in ceiling_cases()},
        f"{datetime.now(UTC).date()}, ONNX Runtime, {session.num_threads} thread(s)",
        num_units=this_device().num_cores,
        cache_bytes=cache_bytes(),
        reference_s=reference.least_s,
    )


def _rate(amount: float, timing: Timing, source: str) -> Figure:
    return Figure(
        value=amount / timing.calm_s,
        low=amount / timing.high_s,
        high=amount / timing.low_s,
        origin="measured",
        source=source,
    )


def _figure(timing: Timing, share: float, source: str) -> Figure:
    return Figure(
        value=share * timing.calm_s,
        low=share * timing.low_s,
        high=share * timing.high_s,
        origin="measured",
        source=source,
    )


def _time(case: CeilingCase, settings: SessionSettings, effort: Effort) -> Timing:
    session = make_session(case.graph.model().SerializeToString(), settings)
    x = np.random.default_rng(1).standard_normal(case.shape, dtype=np.float32)
    return time_in_turn([lambda: session.run(None, {"x": x})], effort, settings.num_threads)[0]


def _product(rows: int, shape: tuple[int, int], weights: Format = FP32) -> Graph:
    graph = Graph()
    graph.input("x", "float32", [rows, shape[0]])
    graph.node("MatMul", ["x", graph.matrix("w", _random(shape), weights)], "y")
    graph.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, shape[1]]))
    return graph


def _chain(size: int) -> Graph:
    """A vector times the same matrix again and again; scaled so that it neither grows nor fades away."""
    graph = Graph()
    value = graph.input("x", "float32", [1, size])
    graph.constant("w", _random((size, size)) / np.float32(np.sqrt(size)))
    for index in range(_CHAIN):
        value = graph.node("MatMul", [value, "w"], f"y{index}")
    graph.outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, size]))
    return graph


def _nothing() -> Graph:
    """Operators on a single number, of a kind that no optimiser takes together."""
    graph = Graph()
    value = graph.input("x", "float32", [1, 1])
    for index in range(4 * _CHAIN):
        value = graph.node("Sin", [value], f"y{index}")
    graph.outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 1]))
    return graph


def _random(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
