"""The most that a device does: what everything measured on it is a share of."""

import math
from dataclasses import dataclass

from blockwright.cost import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number of a device, the interval it is believed to lie in, and where it comes from."""

    value: float
    low: float
    high: float
    origin: Origin
    source: str
    """How it was measured, or the document that says it."""

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high < math.inf:
            raise ValueError("0 < low <= value <= high, all of them finite")
        if not self.source:
            raise ValueError("a source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The most that a device does, with the profile's threads where it is a CPU."""

    read_bytes_per_s: Figure
    """Streaming from memory what is beyond any cache."""
    flop_per_s: dict[str, Figure]
    """Dense products of large matrices, by the format of the weights: ``fp32``, ``bf16``, ``fp8``, ``int4-g32``.
    A multiplication and an addition count as two, for integers too."""
    launch_s: Figure
    """Beginning one operator that does nothing."""
    num_units: int | None = None
    """Cores, or streaming multiprocessors."""
    cache_bytes: int | None = None
    """The last level of cache."""
    cache_read_bytes_per_s: Figure | None = None
    """Streaming what fits into a cache near the core, at its best."""
    idle_w: Figure | None = None
    busy_w: Figure | None = None
    """The power drawn while models run; where nothing tells it, energy is unknown, not nothing."""
    reference_s: float | None = None
    """A small fixed piece of work at its best: slower, the machine is disturbed (`profiler/reference.py`)."""

    def __post_init__(self) -> None:
        if not self.flop_per_s:
            raise ValueError("a rate of products in at least one format")
        for size in (self.num_units, self.cache_bytes, self.reference_s):
            if size is not None and not 0 < size < math.inf:
                raise ValueError("num_units, cache_bytes and reference_s above 0 and finite, where they are known")
