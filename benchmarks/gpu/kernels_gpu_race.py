"""Times contestants in turn on a GPU, in CUDA graphs, and the sizes to do so at; for kernels_gpu.py."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from blockwright.compile.triton_package import triton
from blockwright.errors import InputError

Run = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes, and how often."""

    matrices: tuple[tuple[int, int], ...]
    """Inputs and outputs."""
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    neighbours: int
    heads: int
    kv_heads: int
    head_dim: int
    copy_bytes: int
    rounds: int


FULL = Plan(
    matrices=((4096, 14336), (14336, 4096), (8192, 28672), (4096, 128256)),
    rows=(1, 2, 4, 8, 16),
    contexts=(32768, 131072),
    batches=(1, 4),
    prompts=(8192, 32768),
    neighbours=1024,
    heads=32,
    kv_heads=8,
    head_dim=128,
    copy_bytes=2**31,
    rounds=9,
)
SMALL = Plan(
    matrices=((256, 128),),
    rows=(1, 2),
    contexts=(128,),
    batches=(1,),
    prompts=(96,),
    neighbours=16,
    heads=4,
    kv_heads=2,
    head_dim=32,
    copy_bytes=2**16,
    rounds=2,
)


class Bench:
    """Times contestants in turn on a device whose rate it measured first."""

    def __init__(self, device: torch.device, plan: Plan) -> None:
        self.device, self.plan = device, plan
        self.has_gpu = device.type == "cuda"
        source = torch.empty(plan.copy_bytes // 4, device=device)
        target = torch.empty_like(source)
        self.bytes_per_s = 2 * plan.copy_bytes / min(self._times({"copy": [lambda: target.copy_(source)]})["copy"])

    def copies(self, num_bytes: int) -> int:
        """How many copies of something are together four times as large as the L2 cache."""
        if not self.has_gpu:
            return 1
        cache_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(1, -(-4 * cache_bytes // num_bytes))

    def race(self, contestants: dict[str, list[Run]], least_bytes: dict[str, int], peer: str) -> dict[str, Any]:
        """Seconds of each, how much of the copy's rate it read what it must at, and its speed over the peer's.

        Whoever fails is left out, and told of in its own words; where the peer does, all are.
        """
        failed = dict[str, str]()
        for name, runs in contestants.items():
            try:
                _all(runs)
            except (
                RuntimeError,
                InputError,
                triton.errors.TritonError,
            ) as error:  # torch's and CUDA's are RuntimeErrors
                failed[name] = (str(error).splitlines() or [type(error).__name__])[0]
        able = {name: runs for name, runs in contestants.items() if name not in failed and peer not in failed}
        found, times = {}, self._times(able)
        for name, times_s in times.items():
            median_s = statistics.median(times_s)
            ratios = [theirs / own for theirs, own in zip(times[peer], times_s, strict=True)]
            found[name] = {
                "time_s": median_s,
                "time_s_range": [min(times_s), max(times_s)],
                "share_of_copy": least_bytes[name] / median_s / self.bytes_per_s,
                "times_as_fast": statistics.median(ratios),
                "times_as_fast_range": [min(ratios), max(ratios)],
            }
        return {"peer": peer, "contestants": found, "failed": failed}

    def fastest(self, contestants: dict[str, list[Run]]) -> str:
        """The one with the least median."""
        times = self._times(contestants)
        return min(times, key=lambda name: statistics.median(times[name]))

    def _times(self, contestants: dict[str, list[Run]]) -> dict[str, list[float]]:
        """Seconds of each contestant's runs on the average, round by round."""
        replays = {name: captured(partial(_all, runs), self.has_gpu) for name, runs in contestants.items()}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(self.plan.rounds + 1):
            for name, replay in replays.items():
                times[name].append(self._time(replay) / len(contestants[name]))
        return {name: each[1:] for name, each in times.items()}  # the first warms up

    def _time(self, replay: Run) -> float:
        if not self.has_gpu:
            began = time.perf_counter()
            replay()
            return time.perf_counter() - began
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        for _ in range(10):
            replay()
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended) * 1e-3 / 10


def captured(run: Run, has_gpu: bool) -> Run:
    """The run as a CUDA graph, where there is a GPU; it is run once on the way."""
    if not has_gpu:
        return run
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # compiles, and lets cuBLAS choose, which a capture must not
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _all(runs: list[Run]) -> None:
    for run in runs:
        run()
