"""What runtimes add to a model's operators: a few constants for each class of them, and how well they are known.

A server that replays CUDA graphs leaves the operators as they are, as `datasheet.py` predicts them, and adds the work
of its host for a step and for each sequence in it (scheduling, sampling, text). A compiled host (TensorRT-LLM, MLC) has
only the second. Tried and dropped: a cost per token in the caches, right for chat and 47 % too slow for long answers.
llama.cpp has kernels of its own: a unit draws so many bytes a second and no more, whatever the memory could deliver
(Little's law), packed weights cost operations of fp32 to unpack, and each layer costs launches. Eager torch is bound by
its host, layer by layer, until the device is slower.

Every constant is fitted by `benchmarks/costmodel/serving.py` on open tables, except where its line says otherwise. The
bounds are log ratios of truth to prediction that nine of ten held-out devices and models stayed within.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.datasheet import modelled_times, peak
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator

_SHARPNESS = 4.0
"""Of the bend between two limits that hold at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Kernels of one's own in place of the vendor's libraries: what they make of a device."""

    read_share: float
    """Of the memory's bandwidth, at most."""
    unit_bytes_per_s: float
    """That one unit draws."""
    rate_share: float
    """Of the peak of products, at most."""
    unit_flop_per_s: float
    """Products of one unit."""
    unpack_flop: float
    """Operations of fp32 that unpack one weight of less than 16 bits."""
    cache_reads: float
    """Times that attention takes for the bytes of keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What a device draws, as a share of its limit: idle + (1 - idle) (1 - exp(-what it does)).

    It does reading, products and being busy at all, each as a share of the most; clocks fall as the limit comes near,
    hence the exponential.
    """

    idle: float
    reading: float
    products: float
    busy: float

    def share(self, read_use: float, product_use: float, busy_use: float) -> float:
        """Of the power limit, by shares of bandwidth, of the peak of products and of time."""
        activity = self.reading * read_use + self.products * product_use + self.busy * busy_use
        return float(self.idle + (1 - self.idle) * -np.expm1(-activity))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Log ratios of truth to prediction: what held nine times in ten."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A class of runtimes."""

    name: str
    step_s: float
    sequence_s: float
    layer_s: float
    hop_s: float = 0.0
    """For each further device, where devices hold different layers and work one after another."""
    is_pipeline: bool = False
    is_host_bound: bool = False
    """The host's time and the device's overlap: the longer counts."""
    stream: Stream | None = None
    """None: the vendor's libraries."""
    power: Power
    time_bounds: Bounds
    prompt_bounds: Bounds
    throughput_bounds: Bounds
    energy_bounds: Bounds

    def operator_times(self, operators: Sequence[Operator], ceilings: Ceilings) -> np.ndarray:
        """Seconds of each operator on one device."""
        if self.stream is None:
            return modelled_times(operators, ceilings).time_s
        return streamed_times(operators, ceilings, self.stream)


def streamed_times(operators: Sequence[Operator], ceilings: Ceilings, stream: Stream) -> np.ndarray:
    """Seconds of operators by the rates of a `Stream`: the longer of reading and products, then unpacking."""
    units = ceilings.num_units or 1
    read = _both(stream.read_share * ceilings.read_bytes_per_s.value, stream.unit_bytes_per_s * units)
    times_s = np.empty(len(operators))
    for at, operator in enumerate(operators):
        factor = stream.cache_reads if isinstance(operator, Attend) else 1.0
        times_s[at] = factor * operator.num_bytes / read
        if not isinstance(operator, Elementwise):
            rate = _both(stream.rate_share * peak(operator, ceilings), stream.unit_flop_per_s * units)
            times_s[at] = max(times_s[at], operator.flop / rate)
        if isinstance(operator, Matmul):
            times_s[at] += _unpack_flop(operator, stream) / ceilings.flop_per_s["fp32"].value
    return times_s


def _unpack_flop(matmul: Matmul, stream: Stream) -> float:
    """Operations that unpack a matrix; none for weights of 16 bits."""
    weights = matmul.inputs * matmul.outputs
    return stream.unpack_flop * weights if matmul.weight_bytes < 2 * weights else 0.0


def _both(first: float, second: float) -> float:
    """Two limits at once, with a soft bend."""
    least = min(first, second)
    return least / ((least / first) ** _SHARPNESS + (least / second) ** _SHARPNESS) ** (1 / _SHARPNESS)


SERVER_POWER = Power(idle=0.154, reading=0.284, products=8.36, busy=0.776)
"""ML.ENERGY: shares of 700 W (H100) and 1000 W (B200)."""

GRAPH_SERVER = Runtime(
    name="graph-server",
    step_s=1.56e-3,
    sequence_s=43.7e-6,
    layer_s=0.0,
    power=SERVER_POWER,
    time_bounds=Bounds(low=-0.361, high=0.77),
    prompt_bounds=Bounds(low=-0.72, high=0.8),
    throughput_bounds=Bounds(low=-0.754, high=0.289),
    energy_bounds=Bounds(low=-0.375, high=0.469),
)
"""vLLM: ML.ENERGY's dense models, H100 predicted from B200 and B200 from H100. Its hosts hold the B200 up at many
points, hence bounds that reach far to the slow side. Prompts' times are not measured there: as wide as the widest."""

COMPILED = replace(
    GRAPH_SERVER,
    name="compiled",
    step_s=0.0,
    time_bounds=Bounds(low=-0.35, high=0.35),
    throughput_bounds=Bounds(low=-0.35, high=0.35),
)
"""TensorRT-LLM, MLC: no Python in a step, the work for a sequence as in vLLM. No constant is fitted, but the class
was set apart after seeing MLPerf v4.1 on H100, H200 and L40S and four published figures of Jetsons, which lie inside
the bounds; one of MLPerf on a Jetson, of a format that is not stated, lies outside."""

LLAMA_CUDA = replace(
    GRAPH_SERVER,
    name="llama.cpp-cuda",
    step_s=0.0,
    sequence_s=0.0,
    layer_s=86.9e-6,
    hop_s=0.217e-3,
    is_pipeline=True,
    stream=Stream(
        read_share=0.968,
        unit_bytes_per_s=10.98e9,
        rate_share=1.0,
        unit_flop_per_s=0.725e12,
        unpack_flop=1.07,
        cache_reads=1.89,
    ),
    time_bounds=Bounds(low=-0.129, high=0.185),
    prompt_bounds=Bounds(low=-0.52, high=0.97),
    throughput_bounds=Bounds(low=-0.52, high=0.52),
    energy_bounds=Bounds(low=-0.7, high=0.7),
)
"""16 NVIDIA GPUs of May 2024. Many sequences at once and energy are in none of its tables: wide bounds."""

LLAMA_METAL = replace(
    LLAMA_CUDA,
    name="llama.cpp-metal",
    layer_s=153e-6,
    stream=Stream(
        read_share=1.04,
        unit_bytes_per_s=9.52e9,
        rate_share=1.0,
        unit_flop_per_s=0.21e12,
        unpack_flop=5.9,
        cache_reads=1.76,
    ),
    time_bounds=Bounds(low=-0.325, high=0.373),
    prompt_bounds=Bounds(low=-0.284, high=0.34),
)
"""4 Apple GPUs of May 2024. A share above 1: what the bend between two limits takes is given back."""

LLAMA_CPU = replace(
    LLAMA_CUDA,
    name="llama.cpp-cpu",
    layer_s=50e-6,
    stream=Stream(
        read_share=0.6,
        unit_bytes_per_s=20e9,
        rate_share=0.5,
        unit_flop_per_s=1e12,
        unpack_flop=0.0,
        cache_reads=1.5,
    ),
    time_bounds=Bounds(low=-0.35, high=0.35),
    prompt_bounds=Bounds(low=-0.7, high=0.7),
)
"""Set by hand: two published figures (Raspberry Pi 5: 55 % of its bandwidth) are all there is."""

EAGER = replace(
    GRAPH_SERVER,
    name="eager-torch",
    step_s=1e-3,
    sequence_s=0.0,
    layer_s=0.88e-3,
    is_host_bound=True,
    time_bounds=Bounds(low=-0.7, high=0.7),
    throughput_bounds=Bounds(low=-0.7, high=0.7),
    energy_bounds=Bounds(low=-0.7, high=0.7),
)
"""HAT on a TITAN Xp: 39.7 ms a decoder layer for 30 tokens (WMT) and 30.7 ms for 23 (IWSLT) are 1.33 ms a step, for
three parts where ours has two. The time of a step outside the layers is a guess."""

RUNTIMES = {runtime.name: runtime for runtime in (GRAPH_SERVER, COMPILED, LLAMA_CUDA, LLAMA_METAL, LLAMA_CPU, EAGER)}
