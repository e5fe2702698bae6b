"""Blocks and whole children in torch: plain transformers modules in bf16, of fixed shapes, for a GPU captures them.

Weights are made on the device, for random numbers of a large parent take minutes on a host.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from blockwright.compile.slots import PREFILL_CHUNK, slots_for
from blockwright.cost import Load
from blockwright.count import kv_bytes_per_slot
from blockwright.hw_profiles.profile import Backend, MemoryRow, Point
from blockwright.model.child import build_child
from blockwright.profiler.gpu_bench import Bench, Opened
from blockwright.profiler.gpu_device import TorchDevice
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import Attention, Format, Model, Window

BF16 = Format(name="bf16")
BF16_BYTES = 2
_SCALE = 0.02
_STACK_VOCABULARY = 512
"""The head falls out of a slope: a small one adds less noise."""


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer, the new tokens always in the same place: what is run again reads the same shapes.

    Args:
        num_before: tokens that are there before the new ones.
        num_kept: of those, what a layer with a window keeps.
    """

    is_sliding = False

    def __init__(self, num_before: int, num_kept: int) -> None:
        super().__init__()
        self._num_before, self._num_kept = num_before, num_kept

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        """Random values in all places; called outside of graphs by the first run, which gives the shape."""
        batch, heads, new_tokens, values = key_states.shape
        shape = (batch, heads, self._num_kept + new_tokens, values)
        self.keys, self.values = (
            torch.randn(shape, dtype=key_states.dtype, device=key_states.device) for _ in range(2)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self._num_kept :].copy_(key_states)
        self.values[:, :, self._num_kept :].copy_(value_states)
        return self.keys, self.values

    def get_seq_length(self, *_: Any) -> int:
        return self._num_before

    def get_mask_sizes(self, query_length: Any, *_: Any) -> tuple[int, int]:
        """Its length, and where it begins. Older versions of transformers give positions in place of a length."""
        new_tokens = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self._num_kept + new_tokens, self._num_before - self._num_kept

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """The same, as older versions of transformers call it."""
        return -1


class SlidingLayer(FixedLayer):
    """The same for a layer with a window, whose mask transformers makes apart."""

    is_sliding = True


class TorchRuntime:
    """A `gpu_bench.Runtime`: eager modules on a device, which captures what they launch."""

    def __init__(self, device: TorchDevice) -> None:
        self.backend: Backend = "torch"
        self.weights = BF16
        self._device = device

    def open_stack(self, model: Model, points: Sequence[Point]) -> Opened:
        """transformers has no smaller runnable part than a model: its head, which falls out, is made small."""
        return self.open_whole(replace(model, vocab_size=min(_STACK_VOCABULARY, model.vocab_size)), points)

    def open_whole(self, model: Model, points: Sequence[Point]) -> Opened:
        """The same modules serve all points."""
        child = build_random(model, self._device)
        return lambda point: step_of(child, model, point, self._device)


def build_random(model: Model, device: TorchDevice) -> PreTrainedModel:
    """The model in bf16 on the device, with random weights that were made there."""
    child = build_child(model, hf_config(model))
    nn.Module.to(child, dtype=torch.bfloat16)
    child.to_empty(device=device.torch_device)
    with torch.no_grad():
        for weight in child.parameters():
            weight.normal_(mean=1.0 if weight.dim() == 1 else 0.0, std=_SCALE)
    rotary: Any = type(child.model.rotary_emb)
    child.model.rotary_emb = rotary(child.config).to(device.torch_device)  # no part of the state, and fp32
    child.tie_weights()
    return child.eval()


def step_of(child: PreTrainedModel, model: Model, point: Point, device: TorchDevice) -> Callable[[], torch.Tensor]:
    """One token over a cache of all slots but one, or a prompt into an empty cache; chooses the next token."""
    num_before = 0 if point.new_tokens > 1 else point.slots - 1
    ids_BT = torch.randint(0, model.vocab_size, (point.batch, point.new_tokens), device=device.torch_device)
    positions_BT = torch.arange(num_before, num_before + point.new_tokens, device=device.torch_device)[None]
    cache = Cache(layers=_cache_layers(model, num_before))

    def run() -> torch.Tensor:
        with torch.inference_mode():
            answer = child(ids_BT, position_ids=positions_BT, past_key_values=cache, logits_to_keep=1)
            return answer.logits.argmax(-1)

    return run


def _cache_layers(model: Model, num_before: int) -> list[Any]:
    """One for every layer, for transformers looks them up by number; those without attention stay empty."""
    layers = []
    for block in model.layers:
        is_sliding = isinstance(block.mixer, Attention) and isinstance(block.mixer.reach, Window)
        kept = num_before
        if isinstance(block.mixer, Attention) and isinstance(block.mixer.reach, Window):
            kept = min(num_before, block.mixer.reach.num_tokens - 1)
        layers.append((SlidingLayer if is_sliding else FixedLayer)(num_before, kept))
    return layers


def measure_memory(bench: Bench, model: Model, load: Load) -> list[tuple[MemoryRow, dict[str, Any]]]:
    """What torch allocates at most for a model at a load; beside it what it reserves and what the driver sees used.

    Returns:
        Nothing on a device that nobody counts on.
    """
    device = bench.device
    device.release()
    before = device.state()
    device.peak_bytes()
    base = device.peak_bytes()  # since a moment ago: what is there now
    if base is None:
        return []
    child = build_random(model, device)
    slots = slots_for(load.total_tokens)
    for new_tokens in (min(load.prompt_tokens, PREFILL_CHUNK), 1):
        step_of(child, model, Point(batch=load.batch, new_tokens=new_tokens, slots=slots), device)()
    peaks, after = device.peak_bytes(), device.state()
    assert peaks is not None
    weights = sum(weight.numel() * weight.element_size() for weight in child.parameters())
    caches = sum(kv_bytes_per_slot(model, block.mixer, BF16_BYTES) for block in model.layers)
    row = MemoryRow(
        backend="torch",
        format=str(BF16),
        batch=load.batch,
        prompt_tokens=load.prompt_tokens,
        new_tokens=load.new_tokens,
        peak_bytes=peaks[0] - base[0],
        exact_bytes=weights + caches * slots * load.batch,
        origin="measured",
    )
    used = [None if state is None else state.used_bytes for state in (before, after)]
    del child
    device.release()
    return [(row, {"reserved_bytes": peaks[1] - base[1], "used_bytes_before": used[0], "used_bytes_after": used[1]})]
