"""The few lines that touch CUDA, and a stand-in on the CPU that runs the same code without graphs."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from blockwright.compile.capture import no_collection
from blockwright.hw_profiles.gpu_state import GpuState, gpu_state
from blockwright.hw_profiles.machine import Machine, this_machine
from blockwright.profiler.gpu_clock import Sample

_CALLS_BEFORE_CAPTURE = 3
"""Libraries choose their kernels and take their workspaces before a graph is captured."""
_SMALL_CACHE_BYTES = 2**20
_CYCLES_PER_S = 2e9
"""Of an SM: data centres' GPUs boost to 1.4 to 2 GHz (their datasheets). It need only keep one busy a while."""
_MOST_ASKING_S = 0.3
"""The driver answers sooner, or is not waited for with the GPU at work."""
_LONG_S = 5e-3
"""Longer work is not replayed ahead, which would double what a sample costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What is taken of a device's memory at one time."""

    used_bytes: int
    """By all who use it, torch among them."""
    reserved_bytes: int
    """Of these, what torch has taken from the driver and not given back."""
    given_out_bytes: int
    """Of these again, what torch's tensors have."""


class TorchDevice(Protocol):
    """A `gpu_clock.GpuDevice` that torch runs on."""

    cache_bytes: int
    torch_device: torch.device

    def ready(self, run: Callable[[], object]) -> Sample: ...

    def eager(self, run: Callable[[], object]) -> Sample:
        """A sample that launches the work from the host."""
        ...

    def state(self) -> GpuState | None: ...

    def now_s(self) -> float: ...

    def pause(self, seconds: float) -> None: ...

    def release(self) -> None:
        """Gives memory back that nothing uses any more."""
        ...

    def peak_bytes(self) -> tuple[int, int] | None:
        """The most that torch had allocated and reserved since this was last asked; None where nobody counts."""
        ...

    def taken(self) -> Taken | None:
        """What is taken now, once all is given back that nothing uses; None where nobody counts."""
        ...


def _kept_busy(run: Callable[[], object], sample: Sample, work: object) -> Sample:
    """The sample, begun while the device is at the same work, where that is short; it keeps `work` alive."""
    last_s = 0.0

    def begun_later(_: object = work) -> float:  # a graph knows addresses only: its work keeps the tensors
        nonlocal last_s
        if last_s < _LONG_S:
            run()
        last_s = sample()
        return last_s

    return begun_later


class CudaDevice:
    """The first GPU that this process sees.

    Args:
        machine: to ask for the GPU's state.
        index: of the GPU, as the driver counts them.
    """

    def __init__(self, machine: Machine | None = None, index: int = 0) -> None:
        self._machine, self._index = machine or this_machine(), index
        self._asking_s = _MOST_ASKING_S
        self.torch_device = torch.device("cuda", 0)
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size

    def ready(self, run: Callable[[], object]) -> Sample:
        """Runs the work on a stream beside, then captures it.

        A sample of short work replays it twice, and times the second: events around one alone would count how long the
        host takes to launch it on a GPU that has nothing else to do. Work shorter than a launch still counts it.

        Raises:
            RuntimeError: the work cannot be captured. torch 2.11 may take the process to be capturing from then on
                (pytorch/pytorch#180395), so nothing more should be measured in it.
        """
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_CALLS_BEFORE_CAPTURE):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with no_collection(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                run()
        finally:
            torch.cuda.set_stream(stream)  # torch 2.11 stays on the capture's where that fails

        return _kept_busy(graph.replay, self.eager(graph.replay), run)

    def eager(self, run: Callable[[], object]) -> Sample:
        """Work between two events."""

        def sample() -> float:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / 1e3

        return sample

    def state(self) -> GpuState | None:
        """Asked while one thread of the GPU counts: at rest its clock would fall, and tell nothing of the samples'."""
        torch.cuda._sleep(int(_CYCLES_PER_S * min(_MOST_ASKING_S, self._asking_s)))  # pyright: ignore[reportPrivateUsage]
        started = time.monotonic()
        found = gpu_state(self._machine, self._index)
        self._asking_s = 1.5 * (time.monotonic() - started)
        return found

    def now_s(self) -> float:
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def release(self) -> None:
        _release_cuda()

    def peak_bytes(self) -> tuple[int, int] | None:
        torch.cuda.synchronize()
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        return peaks

    def taken(self) -> Taken | None:
        return cuda_taken()


def cuda_taken() -> Taken:
    """What is taken of the GPU at hand, once all is given back that nothing uses."""
    _release_cuda()
    free, everything = torch.cuda.mem_get_info()
    return Taken(
        used_bytes=everything - free,
        reserved_bytes=torch.cuda.memory_reserved(),
        given_out_bytes=torch.cuda.memory_allocated(),
    )


def _release_cuda() -> None:
    gc.collect()  # models refer to themselves
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


class CpuDevice:
    """The CPU, by the wall clock, to try the code out: its times are worth nothing."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.cache_bytes = _SMALL_CACHE_BYTES

    def ready(self, run: Callable[[], object]) -> Sample:
        return self.eager(run)

    def eager(self, run: Callable[[], object]) -> Sample:
        def sample() -> float:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started

        return sample

    def state(self) -> GpuState | None:
        return None

    def now_s(self) -> float:
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def release(self) -> None:
        pass

    def peak_bytes(self) -> tuple[int, int] | None:
        return None

    def taken(self) -> Taken | None:
        return None
