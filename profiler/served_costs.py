"""What a model costs on a device of which only the datasheet is known, as a sum over its parts.

Operators take what `datasheet` or the runtime's own law says, and the runtime adds its share (`serving`): the time of a
step, of each sequence, and of each layer, of which a mixer and an ffn have half each, so that a part that is removed
costs its host nothing. Two things are no sums, and are taken as they are around the model that is given, the parent:
which of host and device an eager runtime waits for, and the power, which goes by how busy the device is.

The class of runtime follows from the device: a server for NVIDIA's GPUs of data centres, a compiled one for Jetsons and
for cards of workstations and desktops, llama.cpp for Apple's GPUs and for processors; with the backend torch, eager
torch, which is known of NVIDIA's GPUs alone. The backends llama.cpp and tensorrt are classes of their own.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from blockwright.compile.slots import slots_for
from blockwright.cost import Cost, Load, exact
from blockwright.count import ffn_weight_bytes, kv_bytes_per_slot, matrix_bytes, mixer_weight_bytes
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.profile import Backend, Profile
from blockwright.profiler.operators import Operator
from blockwright.profiler.parts import PartCosts, Same
from blockwright.profiler.serving_operators import STORAGES, Step, Storage, step_operators
from blockwright.profiler.serving_runtimes import (
    COMPILED,
    EAGER,
    GRAPH_SERVER,
    LLAMA_CPU,
    LLAMA_CUDA,
    LLAMA_METAL,
    Bounds,
    Runtime,
)
from blockwright.profiler.workspace import WorkspaceClass, modelled_workspace
from blockwright.spec import FFN, Block, Format, Mixer, Model, NoOp

_JETSONS = ("sm_72", "sm_87", "sm_101", "sm_110")
"""Compute capabilities of NVIDIA's modules: Xavier, Orin and Thor, which CUDA 13 counts as 11.0."""
_AT_A_DESK = re.compile(r"geforce|quadro|titan|rtx(?!.*server)", re.IGNORECASE)
"""How NVIDIA names cards that no server holds; an RTX PRO 6000 is also sold as a Server Edition."""
_NAMED: dict[Backend, tuple[Runtime, WorkspaceClass]] = {
    "torch": (EAGER, "eager"),
    "llama.cpp": (LLAMA_CUDA, "streamed"),
    "vllm": (GRAPH_SERVER, "server"),
    "tensorrt": (COMPILED, "compiled"),
}
"""What backends are on NVIDIA's GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Reading the prompts of a batch, or writing a token of each of its sequences."""

    times: PartCosts
    power_w: Cost | None
    """Around the parent, so wide that with the times' intervals it makes those of the energy; None where the device's
    power is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """What a part of a model adds to a step."""

    host_s: float
    device_s: float
    num_bytes: float
    flop: float


def runtime_of(profile: Profile, backend: Backend) -> tuple[Runtime, WorkspaceClass]:
    """The class of runtimes that serves models on a device.

    Raises:
        InputError: nothing is known of eager torch on it.
    """
    device = profile.device
    if backend == "torch" and device.vendor != "NVIDIA":
        raise InputError(
            "--backend",
            got=f"torch on {profile.name}, of which only the datasheet is known",
            expected="an NVIDIA GPU: of no other device do we know what eager torch adds to its operators",
            remedy="Measure it there: blockwright profile --backend torch; or leave the flag out.",
        )
    if device.vendor == "NVIDIA" and backend in _NAMED:
        return _NAMED[backend]
    if device.num_cores is not None:
        return LLAMA_CPU, "streamed"
    if device.vendor == "Apple":
        return LLAMA_METAL, "streamed"
    is_alone = {*device.features, device.architecture} & set(_JETSONS) or _AT_A_DESK.search(device.model)
    return (COMPILED, "compiled") if is_alone else (GRAPH_SERVER, "server")


def storage_of(weights: Format) -> Storage:
    """How runtimes keep what we keep in a format: integers with their scales, multiplied in 16 bit where possible."""
    if weights.group_size is None:
        return STORAGES[weights.name]
    bits = 8 * matrix_bytes(weights.group_size, 1, weights) / weights.group_size
    return Storage(name=str(weights), bits=bits, head_bits=bits, products=STORAGES["bf16"].products)


def prefill_phase(profile: Profile, backend: Backend, model: Model, load: Load) -> Phase:
    """Reading the prompts of a batch at once.

    Raises:
        InputError: the device has no rate of a part's products, or its runtime is not known.
    """
    return _phase_of(Same(profile), backend, model, load, is_prefill=True)


def decode_phase(profile: Profile, backend: Backend, model: Model, load: Load) -> Phase:
    """Writing a token of each sequence, the answer half written.

    Raises:
        InputError: as `prefill_phase`.
    """
    return _phase_of(Same(profile), backend, model, load, is_prefill=False)


@functools.lru_cache(maxsize=64)
def _phase_of(key: Same, backend: Backend, model: Model, load: Load, *, is_prefill: bool) -> Phase:
    """Kept, for a search asks for the same parts under every budget."""
    runtime, _ = runtime_of(key.profile, backend)
    reading = Step(sequences=0, context=0, prompts=load.batch, prompt_tokens=load.prompt_tokens)
    writing = Step(sequences=load.batch, context=load.prompt_tokens + load.new_tokens // 2)
    step, bounds = (reading, runtime.prompt_bounds) if is_prefill else (writing, runtime.time_bounds)
    return _phase(_Steps(ceilings=key.profile.ceilings, runtime=runtime, model=model, step=step), bounds)


def served_memory(profile: Profile, backend: Backend, model: Model, load: Load) -> PartCosts:
    """Weights and caches as counted, and the workspace of the runtime's class."""
    _, kind = runtime_of(profile, backend)
    slots = slots_for(load.total_tokens) * load.batch
    table = model.vocab_size * model.hidden_size * (4 if model.embedding_weights.name == "fp32" else 2)
    shared = table + 4 * model.hidden_size
    if not model.is_head_the_embedding:
        shared += matrix_bytes(model.hidden_size, model.vocab_size, model.head_format)

    def of_mixer(mixer: Mixer) -> Cost:
        if isinstance(mixer, NoOp):
            return exact(0.0)
        cached = kv_bytes_per_slot(model, mixer, storage_of(mixer.weights).kv_bytes_per_value)
        return exact(mixer_weight_bytes(model, mixer) + slots * cached)

    workspace = modelled_workspace(kind, model, load, shared)
    return PartCosts(
        fixed=replace(
            workspace,
            value=shared + workspace.value,
            low=shared + workspace.low,
            high=shared + workspace.high,
        ),
        of_mixer=of_mixer,
        of_ffn=lambda ffn: exact(ffn_weight_bytes(model, ffn)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """Steps of one kind, of any child of a model."""

    ceilings: Ceilings
    runtime: Runtime
    model: Model
    step: Step

    def fixed(self) -> _Share:
        """What every child does, whatever its layers are."""
        host_s = self.runtime.step_s + self.runtime.sequence_s * self.step.sequences
        return self._share(self._operators((), self.model.head_format), host_s)

    def of_part(self, part: Mixer | FFN) -> _Share:
        """What a mixer or an ffn adds."""
        if isinstance(part, NoOp):
            return _Share(host_s=0.0, device_s=0.0, num_bytes=0.0, flop=0.0)
        block = Block(mixer=part, ffn=NoOp()) if isinstance(part, Mixer) else Block(mixer=NoOp(), ffn=part)
        operators = self._operators((block,), part.weights)
        operators.subtract(self._operators((), part.weights))
        return self._share(operators, self.runtime.layer_s / 2)

    def _operators(self, layers: tuple[Block, ...], weights: Format) -> Counter[Operator]:
        storage = storage_of(weights)
        return step_operators(replace(self.model, layers=layers), self.step, storage, storage.product_on(self.ceilings))

    def _share(self, counted: Counter[Operator], host_s: float) -> _Share:
        operators = [operator for operator, times in counted.items() if times]
        times = np.array([counted[operator] for operator in operators], dtype=float)
        return _Share(
            host_s=host_s,
            device_s=float(self.runtime.operator_times(operators, self.ceilings) @ times),
            num_bytes=float(np.array([operator.num_bytes for operator in operators]) @ times),
            flop=float(np.array([operator.flop for operator in operators]) @ times),
        )


def _phase(steps: _Steps, bounds: Bounds) -> Phase:
    of_part = functools.cache(steps.of_part)
    parts = [of_part(part) for block in steps.model.layers for part in (block.mixer, block.ffn)]
    parent = _sum([steps.fixed(), *parts])
    seconds = _seconds(steps.runtime, parent)

    def cost(share: _Share) -> Cost:
        value = seconds(share)
        low, high = value * math.exp(min(bounds.low, 0.0)), value * math.exp(max(bounds.high, 0.0))
        return Cost(value=value, low=low, high=high, origin="modelled")

    return Phase(
        times=PartCosts(
            fixed=cost(steps.fixed()),
            of_mixer=lambda mixer: cost(of_part(mixer)),
            of_ffn=lambda ffn: cost(of_part(ffn)),
        ),
        power_w=_power(steps, parent, seconds(parent), bounds),
    )


def _seconds(runtime: Runtime, parent: _Share) -> Callable[[_Share], float]:
    """A share's time: both one after the other, or of what overlaps the one that the parent waits for."""
    if not runtime.is_host_bound:
        return lambda share: share.host_s + share.device_s
    if parent.host_s >= parent.device_s:
        return lambda share: share.host_s
    return lambda share: share.device_s


def _power(steps: _Steps, parent: _Share, time_s: float, bounds: Bounds) -> Cost | None:
    """As `serving.power_of` says of the parent. Where full load may draw less than the limit, so may this."""
    limit, runtime = steps.ceilings.busy_w, steps.runtime
    if limit is None:
        return None
    peak = steps.ceilings.flop_per_s[storage_of(_main_format(steps.model)).product_on(steps.ceilings)].value
    share = runtime.power.share(
        read_use=min(1.0, parent.num_bytes / time_s / steps.ceilings.read_bytes_per_s.value),
        product_use=min(1.0, parent.flop / time_s / peak),
        busy_use=min(1.0, parent.device_s / time_s),
    )
    value, energy = share * limit.value, runtime.energy_bounds
    return Cost(
        value=value,
        low=value * min(1.0, limit.low / limit.value, math.exp(energy.low - bounds.low)),
        high=value * max(1.0, limit.high / limit.value, math.exp(energy.high - bounds.high)),
        origin="modelled",
    )


def _main_format(model: Model) -> Format:
    """Of most parts; of the head where there are none."""
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    counts = Counter(part.weights for part in parts if not isinstance(part, NoOp))
    return counts.most_common(1)[0][0] if counts else model.head_format


def _sum(shares: list[_Share]) -> _Share:
    return _Share(
        host_s=sum(share.host_s for share in shares),
        device_s=sum(share.device_s for share in shares),
        num_bytes=sum(share.num_bytes for share in shares),
        flop=sum(share.flop for share in shares),
    )
