"""How much memory a model takes: what is counted (`counted`), and what the runtime takes beyond that.

What the runtime takes beyond them comes from a line through measured whole
models: something in any case, and a share of the counted bytes. Where layers differ in format, the models of all those
formats make one line.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from blockwright.compile.slots import chunks_of, slots_for
from blockwright.cost import Cost, Load, Origin, exact, product
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, MemoryRow
from blockwright.profiler.parts import PartCosts, Source

_MIN_RELATIVE_ERROR = 0.02
"""Of the workspace: the peak of the same engine repeats within 2 % (dev/LOG.md)."""

_MEASURE = "blockwright profile --load … --format …"
_MEASURE_ELSEWHERE: dict[Backend, str] = {
    "tensorrt": "blockwright profile --device cuda --backend tensorrt --load … --format …",
}
"""For runtimes that are not measured on a processor."""


def how_to_measure(backend: Backend) -> str:
    """The command that measures memory of a runtime, the parent aside."""
    return _MEASURE_ELSEWHERE.get(backend, _MEASURE)


def memory_costs(source: Source, counted: PartCosts, load: Load) -> PartCosts:
    """The memory of a model's fixed part and of any mixer and ffn in it.

    Args:
        source: the profile, and whether a load that was not measured may borrow the nearest one's workspace.
        counted: what `counted` counts at the load.
        load: the workload.

    Raises:
        InputError: a format was not measured at this load, and borrowing is not allowed or there is nothing to borrow.
    """
    line = _workspace(source, load)

    def with_share(cost: Cost) -> Cost:
        return product(exact(1 + line.share), cost)

    fixed = with_share(counted.fixed)
    return PartCosts(
        fixed=Cost(
            value=fixed.value + line.base_bytes,
            low=fixed.low + line.base_bytes - line.below_bytes,
            high=fixed.high + line.base_bytes + line.above_bytes,
            origin=line.origin,
        ),
        of_mixer=lambda mixer: with_share(counted.of_mixer(mixer)),
        of_ffn=lambda ffn: with_share(counted.of_ffn(ffn)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workspace:
    """What a runtime takes beyond weights and caches: something in any case, and a share of their bytes."""

    base_bytes: float
    share: float
    below_bytes: float
    """How much less it may be."""
    above_bytes: float
    """How much more it may be."""
    origin: Origin


def _workspace(source: Source, load: Load) -> _Workspace:
    rows = [row for row in source.profile.memory if row.backend == source.backend and row.format in source.formats]
    complete = [each for each in _loads_of(rows) if _formats_at(rows, each) == set(source.formats)]
    if load in complete:
        return _with_mixing([row for row in rows if _load_of(row) == load])
    if not (complete and source.may_extrapolate):
        raise _not_measured(source, load, complete)
    nearest = min(complete, key=lambda other: _distance(other, load))
    return _borrowed([row for row in rows if _load_of(row) == nearest], nearest, load)


def _borrowed(rows: list[MemoryRow], nearest: Load, load: Load) -> _Workspace:
    """The workspace of the nearest load measured.

    What the runtime works in holds activations, which go by the tokens that are read at once, and the scores of
    attention, which go by these times the slots. The interval reaches from keeping the nearest load's workspace to
    having all of it grow, or shrink, with the one of the two that changes more.
    """
    line = _with_mixing(rows)
    largest = max(row.peak_bytes - row.exact_bytes for row in rows)
    growth = [there / here for there, here in zip(_work_of(load), _work_of(nearest), strict=True)]
    return _Workspace(
        base_bytes=line.base_bytes,
        share=line.share,
        below_bytes=line.below_bytes + max(0.0, *(1 - each for each in growth)) * abs(largest),
        above_bytes=line.above_bytes + max(0.0, *(each - 1 for each in growth)) * abs(largest),
        origin="modelled",
    )


def _work_of(load: Load) -> tuple[int, int]:
    tokens = load.batch * chunks_of(load.prompt_tokens)[0]
    return tokens, tokens * slots_for(load.total_tokens)


def _distance(first: Load, second: Load) -> float:
    """How many times as much of everything the larger of two loads is, as the sum of logarithms."""
    pairs = [
        (first.batch, second.batch),
        (first.prompt_tokens, second.prompt_tokens),
        (first.total_tokens, second.total_tokens),
    ]
    return sum(abs(math.log(a / b)) for a, b in pairs)


def _with_mixing(rows: list[MemoryRow]) -> _Workspace:
    """The workspace of a model, and of one in several formats, of which none was measured.

    Such a model may need the workspace of each of its formats beside the others': a mixed engine of the demo's child
    took 8.2 MB where the line through fp32 and int4 engines says 6.9 (on a Zen 3). So the upper end is their sum.
    """
    line, formats = _fit_workspace(rows), {row.format for row in rows}
    if len(formats) < 2:
        return line
    largest = [max(r.peak_bytes - r.exact_bytes for r in rows if r.format == each) for each in formats]
    above = max(line.above_bytes, sum(largest) - line.base_bytes)
    return replace(line, above_bytes=line.above_bytes + max(0.0, above), origin="modelled")


def _fit_workspace(rows: list[MemoryRow]) -> _Workspace:
    """A line through the measured models; its error is the largest on a model that was left out of the fit."""
    counted = np.array([row.exact_bytes for row in rows], dtype=np.float64)
    beyond = np.array([row.peak_bytes for row in rows]) - counted
    sizes = set(counted)
    if len(sizes) < 3:  # too few for a line that could be wrong
        base = float(beyond.max())
        error = max(_MIN_RELATIVE_ERROR * base, float(np.ptp(beyond)))
        return _Workspace(base_bytes=base, share=0.0, below_bytes=error, above_bytes=error, origin="transferred")
    base, share = _line(counted, beyond)
    errors: list[float] = []
    for size in sizes:
        others = counted != size
        left_out_base, left_out_share = _line(counted[others], beyond[others])
        errors += list(np.abs(left_out_base + left_out_share * size - beyond[~others]))
    error = float(max(errors))
    return _Workspace(base_bytes=base, share=share, below_bytes=error, above_bytes=error, origin="interpolated")


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of least squares; a slope below zero counts as none."""
    slope = float(np.polyfit(x, y, 1)[0])
    return (float(y.mean() - slope * x.mean()), slope) if slope > 0 else (float(y.mean()), 0.0)


def _load_of(row: MemoryRow) -> Load:
    return Load(batch=row.batch, prompt_tokens=row.prompt_tokens, new_tokens=row.new_tokens)


def _loads_of(rows: list[MemoryRow]) -> list[Load]:
    return list(dict.fromkeys(_load_of(row) for row in rows))


def _formats_at(rows: list[MemoryRow], load: Load) -> set[str]:
    return {row.format for row in rows if _load_of(row) == load}


def _not_measured(source: Source, load: Load, measured: list[Load]) -> InputError:
    where = f"{', '.join(source.formats)} on {source.backend}"
    again = f"Profile again with this load and format: {how_to_measure(source.backend)}"
    names = "; ".join(_describe(each) for each in measured)
    return InputError(
        f"profile {source.profile.name}: memory",
        got=f"no measurement of {where} at {_describe(load)}",
        expected=f"one of the loads measured: {names}" if measured else "a measurement, and there are none",
        remedy=f"{again}; or borrow the nearest load's, at a wider interval, with --extrapolate."
        if measured
        else again,
    )


def _describe(load: Load) -> str:
    return f"batch {load.batch}, {load.prompt_tokens}+{load.new_tokens} tokens"
