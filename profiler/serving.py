"""Whole models as runtimes serve them: time per token, time to first token, throughput and energy, from a datasheet.

A server at its steady state works on B sequences at once; each of them writes a token in every step, and as many
prompts are read in a step as sequences end in one, B / new tokens (continuous batching, Orca, OSDI 2022). So

    step   = host's time + operators of B tokens and of the prompts read + all-reduces
    tokens = B / mean step          energy per token = power x devices x mean step / B

The median step reads fewer prompts than the mean one: that of a Poisson count, near its mean less ln 2. What is not
modelled: queues, prompts of uneven length, speculative decoding, swapping, and hosts slower than the device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from blockwright.cost import Cost, Load
from blockwright.count import kv_bytes_per_slot
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.operators import Matmul, Operator
from blockwright.profiler.serving_operators import STORAGES, Step, Storage, num_all_reduces, step_operators
from blockwright.profiler.serving_runtimes import Bounds, Runtime
from blockwright.spec import Model, NoOp

OperatorTimes = Callable[[Sequence[Operator]], np.ndarray]

SHARE_OF_MEMORY = 0.9
"""That servers fill with weights and caches (vLLM's gpu_memory_utilization)."""

BYTES_BESIDE = 3.5e9
"""Context, graphs and workspace of a server (aiconfigurator's other memory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Between devices: an all-reduce of n takes latency + 2 (n - 1) / n bytes / rate, a ring's law."""

    latency_s: float
    bytes_per_s: float

    def all_reduce_s(self, num_bytes: float, num_devices: int) -> float:
        """Seconds of one all-reduce; nothing on one device."""
        if num_devices == 1:
            return 0.0
        return self.latency_s + 2 * (num_devices - 1) / num_devices * num_bytes / self.bytes_per_s


NVLINK = Link(latency_s=8e-6, bytes_per_s=350e9)
"""H100: 245 to 322 µs for 64 MiB on 2 to 8 of them (Vidur's network tables; 350e9 is the middle); 4 to 13 µs for small
ones inside a CUDA graph (aiconfigurator's custom_allreduce)."""

PCIE = Link(latency_s=20e-6, bytes_per_s=20e9)
"""Not fitted: 16 lanes of PCIe 4 at two thirds of 31.5 GB/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A model kept somehow on devices, under a runtime."""

    model: Model
    ceilings: Ceilings
    """Of one device."""
    runtime: Runtime
    storage: Storage = STORAGES["bf16"]
    num_devices: int = 1
    link: Link = NVLINK
    memory_bytes: float | None = None
    """Of one device, where it bounds the sequences at once."""
    operator_times: OperatorTimes | None = None
    """Seconds of operators on one device; where there are none, the runtime's own law."""

    def __post_init__(self) -> None:
        if not any(not isinstance(part, NoOp) for block in self.model.layers for part in (block.mixer, block.ffn)):
            raise InputError("model", got="no layer that does anything", expected="a decoder", remedy="Mend the spec.")
        if self.num_devices < 1:
            raise InputError("num_devices", got=self.num_devices, expected="1 or more", remedy="Name the devices.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A step on one device: how long, and what was done meanwhile."""

    time_s: float
    device_s: float
    """Of it, with operators running."""
    num_bytes: float
    flop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a server does at a load; all origins are `modelled`."""

    batch: int
    """Sequences at once: those asked for, or as many as memory has room for."""
    time_per_token: Cost
    """The median step."""
    time_to_first_token: Cost
    """Reading one prompt while the others write; the queue is not in it."""
    throughput: Cost
    """New tokens per second, of all devices together."""
    energy_per_token: Cost | None
    """Of all devices, per new token; None where no power limit is known, never nothing."""


def serve(server: Server, load: Load, mean_context: float | None = None) -> Service:
    """What a server does at its steady state.

    Args:
        server: the model on its devices.
        load: `batch` is the most sequences at once.
        mean_context: tokens that a sequence attends to on average; where it is not given, the prompt and half of what
            is written. Where lengths differ much it is more: prompt + E[n^2] / (2 E[n]).

    Raises:
        InputError: not one sequence fits into memory, or the device has no rate of the products.
    """
    context = load.prompt_tokens + load.new_tokens / 2 if mean_context is None else mean_context
    batch = int(min(load.batch, max_sequences(server, context)))
    ended = batch / load.new_tokens
    mean = step_use(server, _reading(load, batch, context, ended))
    median = step_use(server, _reading(load, batch, context, max(0.0, ended - math.log(2))))
    first = step_use(
        server, Step(sequences=batch - 1, context=round(context), prompts=1, prompt_tokens=load.prompt_tokens)
    )
    runtime, power_w = server.runtime, power_of(server, mean)
    return Service(
        batch=batch,
        time_per_token=_cost(median.time_s, runtime.time_bounds),
        time_to_first_token=_cost(first.time_s, runtime.prompt_bounds),
        throughput=_cost(batch / mean.time_s, runtime.throughput_bounds),
        energy_per_token=None
        if power_w is None
        else _cost(power_w * server.num_devices * mean.time_s / batch, runtime.energy_bounds),
    )


def step_time(server: Server, step: Step) -> Cost:
    """The time of one step, whatever it works on.

    Raises:
        InputError: the device has no rate of the products, or heads cannot be shared out.
    """
    bounds = server.runtime.time_bounds if step.sequences else server.runtime.prompt_bounds
    return _cost(step_use(server, step).time_s, bounds)


def step_use(server: Server, step: Step) -> Use:
    """The time of one step and what one device does in it."""
    runtime, ceilings = server.runtime, server.ceilings
    together = 1 if runtime.is_pipeline else server.num_devices
    product = server.storage.product_on(ceilings)
    counted = step_operators(server.model, step, server.storage, product, together)
    operators, times = list(counted), np.array(list(counted.values()), dtype=float)
    found_s = (
        runtime.operator_times(operators, ceilings)
        if server.operator_times is None
        else np.asarray(server.operator_times(operators), dtype=float)
    )
    reduced = 2.0 * step.rows * server.model.hidden_size
    device_s = float(found_s @ times)
    device_s += num_all_reduces(server.model) * server.link.all_reduce_s(reduced, together)
    host_s = runtime.step_s + runtime.sequence_s * step.sequences
    host_s += runtime.layer_s * len(server.model.layers) + runtime.hop_s * (server.num_devices - together)
    shared = server.num_devices / together  # devices that wait for each other do that share of the step
    return Use(
        time_s=max(host_s, device_s) if runtime.is_host_bound else host_s + device_s,
        device_s=device_s / shared,
        num_bytes=float(np.array([operator.num_bytes for operator in operators]) @ times) / shared,
        flop=float(np.array([operator.flop for operator in operators]) @ times) / shared,
    )


def max_sequences(server: Server, context: float) -> float:
    """As many as memory has room for, of so many tokens on average; without a size of memory, any number.

    Raises:
        InputError: not even one.
    """
    if server.memory_bytes is None:
        return math.inf
    weights = sum(
        operator.weight_bytes * times
        for operator, times in step_operators(
            server.model, Step(sequences=1, context=1), server.storage, server.storage.products[0]
        ).items()
        if isinstance(operator, Matmul)
    )
    per_value = server.storage.kv_bytes_per_value
    cached = sum(kv_bytes_per_slot(server.model, block.mixer, per_value) for block in server.model.layers)
    room = (SHARE_OF_MEMORY * server.memory_bytes - BYTES_BESIDE) * server.num_devices - weights
    most = room / (cached * context) if cached else math.inf if room > 0 else 0
    if most < 1:
        raise InputError(
            "server.memory_bytes",
            got=f"{server.num_devices} x {server.memory_bytes / 1e9:.4g} GB",
            expected=f"room for {weights / 1e9:.4g} GB of weights and {cached * context / 1e9:.3g} GB of a sequence",
            remedy="Use more devices, a smaller storage or shorter sequences.",
        )
    return most


def power_of(server: Server, use: Use) -> float | None:
    """Watts of one device during a step, between idle and its limit; None where no limit is known."""
    ceilings = server.ceilings
    if ceilings.busy_w is None:
        return None
    peak = ceilings.flop_per_s[server.storage.product_on(ceilings)].value
    share = server.runtime.power.share(
        read_use=min(1.0, use.num_bytes / use.time_s / ceilings.read_bytes_per_s.value),
        product_use=min(1.0, use.flop / use.time_s / peak),
        busy_use=min(1.0, use.device_s / use.time_s),
    )
    return share * ceilings.busy_w.value


def _reading(load: Load, batch: int, context: float, prompts: float) -> Step:
    """A step that reads so many prompts on average: parts of one, or several whole ones."""
    whole = max(1, round(prompts))
    tokens = round(load.prompt_tokens * prompts / whole)
    return Step(sequences=batch, context=round(context), prompts=whole if tokens else 0, prompt_tokens=tokens)


def _cost(value: float, bounds: Bounds) -> Cost:
    low, high = value * math.exp(min(bounds.low, 0.0)), value * math.exp(max(bounds.high, 0.0))
    return Cost(value=value, low=low, high=high, origin="modelled")
