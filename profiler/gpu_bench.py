"""Blocks and whole children on a GPU, in whatever runtime: how their times become rows.

The time of a part is a slope (see `bench`): a stack of 2n copies less one of n. Stacks are as large as the cache asks
for, but no larger than the parent, whose weights may fit into the cache themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from blockwright.compile.slots import SLOT_BUCKET
from blockwright.cost import Load
from blockwright.count import ffn_weight_bytes, mixer_weight_bytes
from blockwright.hw_profiles.profile import Backend, MemoryRow, Point, TimeRow, WholeRow
from blockwright.profiler.bench import COPIES, block_of
from blockwright.profiler.gpu_clock import GpuClock, GpuTiming, Sample, num_copies, slope_of
from blockwright.profiler.gpu_device import TorchDevice
from blockwright.profiler.gpu_memory import Notes, Scales, memory_row
from blockwright.spec import FFN, Format, Mixer, Model, NoOp, variant_name
from blockwright.strict import to_data

_FEW = 512
"""Tokens of a vocabulary that is there only because a model has one."""
Opened = Callable[[Point], Callable[[], object]]
"""What is ready to run at points: makes inputs and caches of one, and gives a run, which a device captures."""


class Runtime(Protocol):
    """Who runs blocks. What it lacks a kernel or memory for it tells by a RuntimeError, as torch does."""

    @property
    def backend(self) -> Backend:
        """Of its rows."""
        ...

    @property
    def weights(self) -> Format:
        """Of all layers."""
        ...

    def open_stack(self, model: Model, points: Sequence[Point]) -> Opened:
        """A model's layers with random weights. What is run beside them is the same for all stacks."""
        ...

    def open_whole(self, model: Model, points: Sequence[Point]) -> Opened:
        """A model with random weights, from tokens to the choice of the next token."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What blocks are measured with."""

    parent: Model
    """In the runtime's format."""
    clock: GpuClock
    device: TorchDevice
    runtime: Runtime
    scales: Scales | None = None
    """What whole models are weighed with while they are timed; None where they are not, or in cases of their own."""


def with_scales(bench: Bench) -> Bench:
    """The same with what weighs whole models while they are timed."""
    small = replace(bench.parent, layers=bench.parent.layers[:1], vocab_size=min(_FEW, bench.parent.vocab_size))
    point = Point(batch=1, new_tokens=1, slots=SLOT_BUCKET)

    def open_once() -> None:
        bench.device.ready(bench.runtime.open_whole(small, [point])(point))()
        bench.device.release()

    return replace(bench, scales=Scales(bench.device, open_once))


def measure_part(bench: Bench, variant: Mixer | FFN, points: Sequence[Point]) -> list[tuple[TimeRow, GpuTiming]]:
    """The time that one copy of a mixer or an ffn adds to a model, at each point."""
    copies = copies_of(bench.parent, variant, bench.device.cache_bytes)
    stacks = [replace(bench.parent, layers=(block_of(variant),) * number) for number in (copies, 2 * copies)]
    children = [bench.runtime.open_stack(stack, points) for stack in stacks]
    found = []
    for point in points:
        runs = [child(point) for child in children]
        timing = bench.clock.time(slope_of(*map(bench.device.ready, runs)), copies)
        found.append((_time_row(bench.runtime, variant, point, timing), timing))
        del runs
    del children
    bench.device.release()
    return found


def measure_whole(
    bench: Bench, model: Model, points: Sequence[Point], is_anchor: bool, load: Load | None = None
) -> list[tuple[WholeRow | MemoryRow, GpuTiming | Notes]]:
    """The time of a whole model at each point, from tokens to the next token; and its memory, where there are scales.

    It is weighed when all points are recorded, as an engine is that has read a prompt and writes.

    Args:
        bench: what to measure with.
        model: what to measure.
        points: of the load.
        is_anchor: whether others are fitted to it.
        load: whose points these are; None for times alone.
    """
    before = None if bench.scales is None or load is None else bench.scales.before()
    child = bench.runtime.open_whole(model, points)
    found: list[tuple[WholeRow | MemoryRow, GpuTiming | Notes]] = []
    recorded: list[Sample] = []
    for point in points:
        if before is None:
            recorded.clear()  # nobody asks what all of them take together
        recorded.append(bench.device.ready(child(point)))
        timing = bench.clock.time(recorded[-1])
        found.append((_whole_row(bench.runtime, model, point, timing, is_anchor), timing))
    if before is not None and load is not None:
        after = bench.device.taken()
        try:
            found.append(memory_row(bench.runtime.backend, bench.runtime.weights, model, load, (before, after)))
        except RuntimeError as error:  # times are good all the same
            row, timing = found[-1]
            found[-1] = (row, to_data(timing) | {"not_weighed": str(error)})
    del child, recorded
    bench.device.release()
    return found


def copies_of(parent: Model, variant: Mixer | FFN, cache_bytes: int) -> int:
    """n of a stack: out of the cache, unless the parent's own layers are not."""
    assert not isinstance(variant, NoOp)
    weight_bytes = (
        mixer_weight_bytes(parent, variant) if isinstance(variant, Mixer) else ffn_weight_bytes(parent, variant)
    )
    return min(max(COPIES, num_copies(weight_bytes, cache_bytes)), max(COPIES, len(parent.layers)))


def _time_row(runtime: Runtime, variant: Mixer | FFN, point: Point, timing: GpuTiming) -> TimeRow:
    return TimeRow(
        backend=runtime.backend,
        format=str(runtime.weights),
        part="mixer" if isinstance(variant, Mixer) else "ffn",
        variant=variant_name(variant),
        point=point,
        time_s=max(timing.median_s, 0.0),
        low_s=max(timing.low_s, 0.0),
        high_s=max(timing.high_s, 0.0),
        num_samples=timing.num_samples,
        num_rejected=timing.num_rejected,
        origin="measured",
    )


def _whole_row(runtime: Runtime, model: Model, point: Point, timing: GpuTiming, is_anchor: bool) -> WholeRow:
    return WholeRow(
        backend=runtime.backend,
        format=str(runtime.weights),
        layers=tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in model.layers),
        is_anchor=is_anchor,
        point=point,
        time_s=timing.median_s,
        low_s=timing.low_s,
        high_s=timing.high_s,
        num_samples=timing.num_samples,
        num_rejected=timing.num_rejected,
        origin="measured",
    )
