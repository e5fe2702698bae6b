"""The most that a GPU does in torch: streaming, dense products by format, and the cost of a launch."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.profiler.gpu_clock import GpuClock, GpuTiming
from blockwright.profiler.gpu_device import TorchDevice
from blockwright.profiler.gpu_operators import random_tensor

_TINY_OPERATORS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingSizes:
    """How large the work is."""

    stream_bytes: int = 2**31
    side: int = 8192
    """Of square matrices."""


TINY = CeilingSizes(stream_bytes=2**20, side=64)
"""To try the code out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCeilings:
    """What stands in a profile, and what it has no place for."""

    ceilings: Ceilings
    copy_bytes_per_s: float
    """Read and written together."""
    eager_launch_s: float
    """One operator that does nothing, launched by the host."""
    refused: dict[str, str]
    """Formats that this torch or this chip has no product of, and what it said."""


def measure_ceilings(clock: GpuClock, device: TorchDevice, sizes: CeilingSizes) -> GpuCeilings:
    """Times streams, products and launches."""
    how = f"{datetime.now(UTC).date()}, torch {torch.__version__}, CUDA graphs on a GPU, eager on a CPU"
    streams = _streams(clock, device, sizes)
    best = max(streams, key=lambda name: streams[name][0] / streams[name][1].median_s)
    rates: dict[str, Figure] = {}
    refused: dict[str, str] = {}
    for name in _PRODUCTS:
        try:
            rates[name] = _rate(2 * sizes.side**3, _time_product(name, clock, device, sizes.side), f"{name}; {how}")
        except (RuntimeError, NotImplementedError, ValueError) as error:  # what torch raises for a missing kernel
            refused[name] = str(error).splitlines()[0]
    launch, eager = _launches(clock, device)
    device.release()
    return GpuCeilings(
        ceilings=Ceilings(
            read_bytes_per_s=_rate(*streams[best], f"{best} of {sizes.stream_bytes} bytes; {how}"),
            flop_per_s=rates,
            launch_s=_figure(launch, f"one of {_TINY_OPERATORS} sums of one number; {how}"),
            num_units=_num_units(device),
            cache_bytes=device.cache_bytes,
        ),
        copy_bytes_per_s=streams["copy"][0] / streams["copy"][1].median_s,
        eager_launch_s=eager.median_s,
        refused=refused,
    )


def reference_work(device: TorchDevice, side: int) -> Callable[[], object]:
    """The reference kernel: a product in bf16 that is neither short nor long."""
    x, w = (random_tensor((side, side), torch.bfloat16, device) for _ in range(2))
    out = torch.empty_like(x)
    return lambda: torch.mm(x, w, out=out)


def _streams(clock: GpuClock, device: TorchDevice, sizes: CeilingSizes) -> dict[str, tuple[int, GpuTiming]]:
    """Bytes and times: a copy, a sum, and a vector by a matrix, which the best kernels read in different ways."""
    values = sizes.stream_bytes // 2
    x = random_tensor((values,), torch.bfloat16, device)
    y, columns = torch.empty_like(x), min(4096, values // 16)
    matrix = x[: values // columns * columns].view(-1, columns)
    row = random_tensor((columns, 1), torch.bfloat16, device)
    return {
        "copy": (4 * values, clock.time(device.ready(lambda: y.copy_(x)))),
        "sum": (2 * values, clock.time(device.ready(lambda: x.sum()))),
        "vector by matrix": (2 * matrix.numel(), clock.time(device.ready(lambda: torch.mm(matrix, row)))),
    }


def _launches(clock: GpuClock, device: TorchDevice) -> tuple[GpuTiming, GpuTiming]:
    """One of many operators that do nothing: in a graph, and launched by the host."""
    one = random_tensor((1,), torch.float32, device)

    def run() -> None:
        for _ in range(_TINY_OPERATORS):
            one.add_(1.0)

    return tuple(clock.time(make(run), _TINY_OPERATORS) for make in (device.ready, device.eager))  # type: ignore[return-value]


def _time_product(name: str, clock: GpuClock, device: TorchDevice, side: int) -> GpuTiming:
    with _tf32(name == "tf32"):
        return clock.time(device.ready(_PRODUCTS[name](device, side)))


def _plain(dtype: torch.dtype) -> Callable[[TorchDevice, int], Callable[[], object]]:
    def make(device: TorchDevice, side: int) -> Callable[[], object]:
        x, w = (random_tensor((side, side), dtype, device) for _ in range(2))
        out = torch.empty_like(x)
        return lambda: torch.mm(x, w, out=out)

    return make


def _fp8(device: TorchDevice, side: int) -> Callable[[], object]:
    x, w = (random_tensor((side, side), torch.float32, device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device.torch_device)
    # As inference takes it: Hopper adds up faster in less than fp32.
    return lambda: torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _int8(device: TorchDevice, side: int) -> Callable[[], object]:
    x, w = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device.torch_device) for _ in range(2))
    return lambda: torch._int_mm(x, w.t())  # pyright: ignore[reportPrivateImportUsage]


_PRODUCTS: dict[str, Callable[[TorchDevice, int], Callable[[], object]]] = {
    "fp32": _plain(torch.float32),
    "tf32": _plain(torch.float32),
    "bf16": _plain(torch.bfloat16),
    "fp16": _plain(torch.float16),
    "fp8": _fp8,
    "int8": _int8,
}


@contextlib.contextmanager
def _tf32(is_on: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = is_on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _num_units(device: TorchDevice) -> int | None:
    if device.torch_device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device.torch_device).multi_processor_count


def _rate(amount: float, timing: GpuTiming, source: str) -> Figure:
    return Figure(
        value=amount / timing.median_s,
        low=amount / timing.high_s,
        high=amount / timing.low_s,
        origin="measured",
        source=source,
    )


def _figure(timing: GpuTiming, source: str) -> Figure:
    return Figure(value=timing.median_s, low=timing.low_s, high=timing.high_s, origin="measured", source=source)
