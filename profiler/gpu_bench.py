"""Blocks and whole children on a GPU, in whatever runtime: how their times become rows.

The time of a part is a slope (see `bench`): a stack of 2n copies less one of n. Stacks are as large as the cache asks
for, but no larger than the parent, whose weights may fit into the cache themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from blockwright.count import ffn_weight_bytes, mixer_weight_bytes
from blockwright.hw_profiles.profile import Backend, Point, TimeRow, WholeRow
from blockwright.profiler.bench import COPIES, block_of
from blockwright.profiler.gpu_clock import GpuClock, GpuTiming, num_copies, slope_of
from blockwright.profiler.gpu_device import TorchDevice
from blockwright.spec import FFN, Format, Mixer, Model, NoOp, variant_name

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
    bench: Bench, model: Model, points: Sequence[Point], is_anchor: bool
) -> list[tuple[WholeRow, GpuTiming]]:
    """The time of a whole model at each point, from tokens to the next token."""
    child = bench.runtime.open_whole(model, points)
    found = []
    for point in points:
        timing = bench.clock.time(bench.device.ready(child(point)))
        found.append((_whole_row(bench.runtime, model, point, timing, is_anchor), timing))
    del child
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
