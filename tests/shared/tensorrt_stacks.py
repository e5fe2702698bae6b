"""Stacks of blocks that TensorRT is timed with."""

from dataclasses import replace

from blockwright.hw_profiles.profile import Point
from blockwright.llama import llama
from blockwright.profiler.bench import block_of
from blockwright.profiler.gpu_bench import Bench
from blockwright.profiler.gpu_clock import GpuClock, GpuEffort
from blockwright.profiler.gpu_device import CpuDevice
from blockwright.profiler.gpu_tensorrt import TensorRtRuntime
from blockwright.spec import (
    FFN,
    Attention,
    Block,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Window,
    with_format,
)

SLOTS = 64
DECODE, PREFILL = Point(batch=2, new_tokens=1, slots=SLOTS), Point(batch=2, new_tokens=24, slots=SLOTS)
VARIANTS: tuple[Mixer | FFN, ...] = (
    Attention(num_kv_heads=4),
    Attention(num_kv_heads=2),
    Attention(num_kv_heads=1, reach=Window(num_tokens=16)),
    LinearMixer(),
    GatedFFN(width=384),
    LinearFFN(),
)
MIXED = (
    Block(mixer=NoOp(), ffn=GatedFFN(width=256)),
    Block(mixer=Attention(num_kv_heads=2), ffn=NoOp()),
    Block(mixer=LinearMixer(), ffn=LinearFFN()),
    Block(mixer=Attention(num_kv_heads=1, reach=Window(num_tokens=16)), ffn=NoOp()),
)
PARENT = llama(MIXED, hidden_size=128, num_heads=4, head_dim=32, vocab_size=256, max_positions=1152)


def stack_of(variant: Mixer | FFN, copies: int = 2) -> Model:
    return replace(PARENT, layers=(block_of(variant),) * copies)


def bench_of(runtime: TensorRtRuntime, device: CpuDevice | None = None) -> Bench:
    device, effort = device or CpuDevice(), GpuEffort(min_samples=3, limit_s=1e-3, warm_up_s=0.0, warm_up_calls=1)
    parent = with_format(PARENT, runtime.weights)
    return Bench(parent=parent, clock=GpuClock(device, effort, None), device=device, runtime=runtime)
