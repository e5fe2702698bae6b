"""The power that an NVIDIA GPU draws, from its own counter of energy, where nvidia-ml-py is there to read it."""

import time
from collections.abc import Callable

try:
    import pynvml  # pyright: ignore[reportMissingImports]
except ImportError:
    pynvml = None

from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.energy import Counter, EnergyEffort, Nvml, measure_power
from blockwright.profiler.gpu_bench import Bench

_BETWEEN_LOOKS_S = 0.05
_QUICK = EnergyEffort(window_s=0.1, cool_s=0.0, num_windows=1)


def nvml_counter(index: int = 0) -> Counter | None:
    """The energy counter of a GPU; None without the library, the driver or a counter."""
    library = pynvml
    if library is None:
        return None
    try:
        library.nvmlInit()
        handle = library.nvmlDeviceGetHandleByIndex(index)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError:
        return None
    return Nvml(lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle))


def measure_powers(bench: Bench, point: Point, counter: Counter | None, is_quick: bool = False) -> dict[str, Figure]:
    """``idle_w`` and ``busy_w`` of a profile's ceilings: doing nothing, and the parent writing tokens.

    Args:
        bench: what runs where.
        point: of decoding.
        counter: of the device.
        is_quick: to try the code out.

    Returns:
        Nothing where there is no counter, or the device is none that a counter counts.
    """
    if counter is None or bench.device.torch_device.type != "cuda":
        return {}
    effort = _QUICK if is_quick else EnergyEffort()
    idle = measure_power(lambda: time.sleep(_BETWEEN_LOOKS_S), counter, effort)
    return {"idle_w": idle, "busy_w": measure_power(_steps(bench, point), counter, effort)}


def _steps(bench: Bench, point: Point) -> Callable[[], object]:
    return bench.device.ready(bench.runtime.open_whole(bench.parent, [point])(point))
