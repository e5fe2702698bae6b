"""A GPU with TensorRT, made up: ONNX Runtime computes, a clock of its own moves on, and memory is what we say it is.

Nothing that is measured here is a number of any device.
"""

import random
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from blockwright.cost import Load
from blockwright.hw_profiles.profile import Point
from blockwright.pipeline import gpu_profile
from blockwright.profiler.counted import counting_of
from blockwright.profiler.gpu_device import CpuDevice, Taken
from blockwright.profiler.gpu_tensorrt import InOnnxRuntime, Kind, Network, Stored
from blockwright.spec import Attention, GatedFFN, Model, NoOp, Variant

_CONTEXT_BYTES = 123_456_789
"""Of CUDA's context, which is no model's."""


class Simulated(CpuDevice):
    """A clock that plans move on by what their blocks are made up to take, all else by a millisecond."""

    elapsed_s = 0.0
    noise = random.Random(0)
    opened: ClassVar["weakref.WeakSet[Timed]"] = weakref.WeakSet()

    def eager(self, run: Callable[[], object]) -> Callable[[], float]:
        def sample() -> float:
            before = Simulated.elapsed_s
            run()
            if Simulated.elapsed_s == before:
                Simulated.elapsed_s += 1e-3
            return Simulated.elapsed_s - before

        return sample

    def now_s(self) -> float:
        return Simulated.elapsed_s


class Weighing(Simulated):
    """The same where somebody counts memory."""

    def taken(self) -> Taken | None:
        used = sum(round(memory_of(each.model, each.point)) for each in Simulated.opened)
        return Taken(used_bytes=_CONTEXT_BYTES + used, reserved_bytes=0, given_out_bytes=0)


@dataclass(frozen=True)
class Timed:
    """A network that takes the time and the memory that it is made up to take."""

    network: Network
    model: Model
    point: Point

    @property
    def inputs(self) -> frozenset[str]:
        return self.network.inputs

    @property
    def device(self) -> torch.device:
        return self.network.device

    def bind(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        enqueue = self.network.bind(profile, tensors)

        def run() -> None:
            enqueue()
            Simulated.elapsed_s += time_of(self.model, profile == 0) * Simulated.noise.uniform(0.9999, 1.0001)

        return run


def simulate(monkeypatch: pytest.MonkeyPatch, device: type[Simulated] = Weighing) -> None:
    """Profiles of the CPU are then of this device."""
    Simulated.elapsed_s, Simulated.noise = 0.0, random.Random(0)  # or draws would hang on what ran before
    real = InOnnxRuntime.open

    def opened(self: InOnnxRuntime, kind: Kind, stored: Stored, point: Point) -> Timed:
        timed = Timed(real(self, kind, stored, point), stored.model, point)
        Simulated.opened.add(timed)
        return timed

    monkeypatch.setattr(InOnnxRuntime, "open", opened)
    monkeypatch.setattr(gpu_profile, "CpuDevice", device)


def time_of(model: Model, is_prompt: bool) -> float:
    """Seconds of a step of a whole model, or of its prompt."""
    parts = [part for block in model.layers for part in (block.mixer, block.ffn) if not isinstance(part, NoOp)]
    return 0.02 + (2 if is_prompt else 1) * sum(map(_time_of_part, parts))


def memory_of(model: Model, point: Point) -> float:
    """Bytes that it takes while it is open: a quarter more than is counted, and three megabytes."""
    load = Load(batch=point.batch, prompt_tokens=point.slots - 1, new_tokens=1)
    return 3e6 + 1.25 * counting_of("tensorrt").whole_bytes(model, load)


def _time_of_part(part: Variant) -> float:
    match part:
        case Attention(num_kv_heads=num_kv_heads):
            time_s = 0.01 * (1 + num_kv_heads)
        case GatedFFN(width=width):
            time_s = 0.01 + 1e-4 * width
        case _:
            time_s = 0.005
    return time_s * (0.6 if part.weights.name == "int4" else 1.0)  # type: ignore[union-attr]
