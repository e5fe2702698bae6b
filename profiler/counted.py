"""What of a model's memory and disk is known by counting, in each runtime: weights as stored, and caches.

ONNX Runtime   norms, biases and scales in fp32; caches in fp32, of the same number of slots in all layers
TensorRT       all of these in fp16 or bf16, and so are embedding and head; a window's tokens go round in fewer slots
               (`caches_of`), the others' caches have as many slots as the engine's --context asks for

A TensorRT engine's caches are as long as its --context from the first token on. At a load, an engine is counted that
was compiled for just that load: --context of a whole sequence's tokens, rounded up to whole buckets (`slots_for`), and
--batch of its sequences. One for longer texts takes more.

Tables of rotary positions, which a TensorRT engine has beside its weights, are as long as its --context whatever its
layers are, so they are left to what is measured at a load.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from blockwright.compile.slots import caches_of, slots_for
from blockwright.cost import Cost, Load, exact
from blockwright.count import ffn_weight_bytes, kv_bytes_per_slot, mixer_weight_bytes, shared_weight_bytes
from blockwright.hw_profiles.profile import Backend
from blockwright.profiler.parts import PartCosts, Reaches
from blockwright.spec import FP16, Attention, Block, Mixer, Model, NoOp

_HALF_BYTES = 2
"""Of a number in fp16, and of one in bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How a runtime's engines are counted."""

    disk: Callable[[Model], PartCosts]
    """Bytes of all weights as stored."""
    memory: Callable[[Model, Load, Reaches], PartCosts]
    """Bytes of weights and caches at a load; the third says how layers of a child may reach."""
    whole_bytes: Callable[[Model, Load], int]
    """The same of a whole model, whose layers are all known."""
    is_told: Literal["always", "where measured", "never"] = "always"
    """Whether a profile that measured blocks tells memory; where nothing tells it, asking is an error."""


def exact_disk(model: Model) -> PartCosts:
    """Bytes of all weights as ONNX Runtime's engines store them, by counting."""
    return _weights(model, 4)


def exact_memory(model: Model, load: Load) -> PartCosts:
    """Bytes of these weights and of the caches, by counting."""
    slots, weights = slots_for(load.total_tokens) * load.batch, exact_disk(model)
    return PartCosts(
        fixed=weights.fixed,
        of_mixer=lambda m: exact(weights.of_mixer(m).value + slots * kv_bytes_per_slot(model, m)),
        of_ffn=weights.of_ffn,
    )


def tensorrt_disk(model: Model) -> PartCosts:
    """Bytes of all weights in a TensorRT plan, its kernels aside: embedding and head in fp16, or in bf16, as large."""
    return _weights(replace(model, embedding_weights=FP16, head_weights=None), _HALF_BYTES)


def tensorrt_memory(model: Model, load: Load, reaches: Reaches = None) -> PartCosts:
    """Bytes of the weights and caches of a TensorRT engine that was compiled for a load.

    How many slots a window's tokens go round in hangs on the other windows: all share one number, the one that makes
    the caches smallest (`caches_of`). A window counts as if it were alone; its upper end is what it takes where it
    shares with the longest window that goes round. It may take more, a cache of all slots, but then all caches
    together are smaller. Where it is not known how other layers reach, its upper end is a cache of all slots.

    Args:
        model: the parent, or the model itself.
        load: the workload, for which the engine is compiled.
        reaches: of all layers that a child may have; None where that is not known.
    """
    slots, weights = slots_for(load.total_tokens), tensorrt_disk(model)
    alone = [_slots_alone(model, Attention(num_kv_heads=1, reach=reach), slots) for reach in reaches or ()]
    most = slots if reaches is None else max((own for own in alone if own < slots), default=slots)

    def of_mixer(mixer: Mixer) -> Cost:
        stored = weights.of_mixer(mixer).value
        if not isinstance(mixer, Attention):
            return exact(stored)
        per_slot, own = load.batch * kv_bytes_per_slot(model, mixer, _HALF_BYTES), _slots_alone(model, mixer, slots)
        return replace(
            exact(stored + own * per_slot), high=stored + (max(own, most) if own < slots else own) * per_slot
        )

    return PartCosts(fixed=weights.fixed, of_mixer=of_mixer, of_ffn=weights.of_ffn)


def tensorrt_cache_bytes(model: Model, load: Load) -> int:
    """Bytes of all caches of an engine that was compiled for a load, while it writes that load."""
    held = caches_of(model, slots_for(load.total_tokens))
    slots = ((block.mixer, held[index].num_slots) for index, block in enumerate(model.layers) if index in held)
    return load.batch * sum(kv_bytes_per_slot(model, mixer, _HALF_BYTES) * own for mixer, own in slots)


def reaches_of(mixers: Iterable[Mixer]) -> Reaches:
    """How they reach, for `tensorrt_memory`."""
    return frozenset(mixer.reach for mixer in mixers if isinstance(mixer, Attention))


def counting_of(backend: Backend) -> Counting:
    """How a backend's engines are counted."""
    return _COUNTINGS[backend]


def _weights(model: Model, number_bytes: int) -> PartCosts:
    return PartCosts(
        fixed=exact(shared_weight_bytes(model, number_bytes)),
        of_mixer=lambda mixer: exact(mixer_weight_bytes(model, mixer, number_bytes)),
        of_ffn=lambda ffn: exact(ffn_weight_bytes(model, ffn, number_bytes)),
    )


def _tensorrt_bytes(model: Model, load: Load) -> int:
    return int(tensorrt_disk(model).of_model(model).value) + tensorrt_cache_bytes(model, load)


def _slots_alone(model: Model, mixer: Attention, slots: int) -> int:
    """Of a model's only layer."""
    alone = replace(model, layers=(Block(mixer=mixer, ffn=NoOp()),))
    return caches_of(alone, slots)[0].num_slots


_FP32 = Counting(
    disk=exact_disk,
    memory=lambda model, load, reaches: exact_memory(model, load),
    whole_bytes=lambda model, load: int(exact_memory(model, load).of_model(model).value),
)
_COUNTINGS: dict[Backend, Counting] = {
    "onnxruntime": _FP32,
    "torch": replace(_FP32, is_told="never"),
    "llama.cpp": _FP32,
    "vllm": _FP32,
    "tensorrt": Counting(
        disk=tensorrt_disk, memory=tensorrt_memory, whole_bytes=_tensorrt_bytes, is_told="where measured"
    ),
}
