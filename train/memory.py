"""How much memory a distillation will take, told before it starts, and what would fit where it does not.

    weights       4 bytes a parameter of the child; 4 or 2 of the parent
    gradients     4 bytes a parameter of the child
    optimiser     8 bytes a parameter (AdamW), 4 of a matrix (Muon)
    activations   what autograd keeps of the child's layers for one part of a batch: all of it, or, where layers are run
                  again, what enters each layer and the whole of the largest one
    logits        five chunks of logits, and the head's gradient three times, in fp32 (`chunked_kl.py`)

Counted from the specs, per token, with the values that stock transformers' layers save; held against real peaks in
tests/train/test_memory.py. Not counted: the interpreter and its libraries, which are there already.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from blockwright.count import ffn_matrices, mixer_matrices, parameters
from blockwright.errors import InputError
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp
from blockwright.train.chunked_kl import CHUNK_TOKENS
from blockwright.train.distill import GkdSettings
from blockwright.train.losses import OF_STATES

_RESERVE = 1.35
"""A prediction may be so much too low: allocators break memory up (real peaks of small runs: 0.7 to 1.3 times)."""
_CHUNKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the peak, by what they are for."""

    parent_bytes: float
    child_bytes: float
    gradients_bytes: float
    optimiser_bytes: float
    activations_bytes: float
    logits_bytes: float

    @property
    def total_bytes(self) -> float:
        """All together."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done."""

    child: Model
    parent: Model
    settings: GkdSettings
    windows: int
    """Of a batch, on this rank."""
    window_tokens: int
    num_ranks: int = 1


def predict_memory(work: Work) -> Memory:
    """The peak of one rank's memory."""
    settings, child = work.settings, work.child
    num_child, num_parent = parameters(child), parameters(work.parent)
    num_matrix = sum(
        inputs * outputs
        for block in child.layers
        for inputs, outputs in mixer_matrices(child, block.mixer) + ffn_matrices(child, block.ffn)
    )
    width = 4 if settings.precision == "fp32" else 2
    tokens = -(-work.windows // settings.parts) * work.window_tokens
    on_muon = num_matrix if settings.optimizer == "muon" else 0
    head = child.vocab_size * child.hidden_size
    layers = [tokens * _saved_values(child, block, settings) for block in child.layers]
    per_layer = tokens * child.hidden_size * 2 * bool(settings.losses.among(OF_STATES)) + tokens * child.hidden_size
    kept = sum(layers) if not settings.recomputes_activations else per_layer * len(layers) + max(layers, default=0)
    return Memory(
        parent_bytes=width * num_parent / work.num_ranks,
        child_bytes=4 * num_child / work.num_ranks,
        gradients_bytes=4 * num_child / work.num_ranks,
        optimiser_bytes=(8 * (num_child - on_muon) + 4 * on_muon) / work.num_ranks,
        activations_bytes=4 * kept + 4 * 4 * tokens * child.hidden_size,
        logits_bytes=4 * _CHUNKS * min(CHUNK_TOKENS, tokens) * child.vocab_size + 3 * 4 * head,
    )


def check_memory(work: Work, device: torch.device) -> Memory:
    """Predicts, and refuses what cannot fit.

    Raises:
        InputError: it takes more than there is; says what would fit.
    """
    memory, free = predict_memory(work), free_bytes(device)
    if memory.total_bytes * _RESERVE <= free:
        return memory
    names = {field.name: field.name.removesuffix("_bytes") for field in fields(memory)}
    parts = ", ".join(f"{name} {_show(getattr(memory, field))}" for field, name in names.items())
    ways = (words for words, other in _alternatives(work) if predict_memory(other).total_bytes * _RESERVE <= free)
    found = next(ways, None)
    least = min(predict_memory(other).total_bytes for _, other in [("", work), *_alternatives(work)])
    raise InputError(
        f"memory of {device}",
        got=f"{_show(free)} free",
        expected=f"{_show(memory.total_bytes * _RESERVE)}: {parts}, and a third in reserve",
        remedy=f"This would fit: {found}."
        if found
        else f"Even the thriftiest way takes {_show(least * _RESERVE)}: shorten the window, spread it over ranks, or "
        "take a larger machine.",
    )


def free_bytes(device: torch.device) -> float:
    """What may still be taken on a device; on a CPU also within the limit that a container sets."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = re.search(r"MemAvailable:\s*(\d+) kB", _read(Path("/proc/meminfo")))
    free = float(found[1]) * 1024 if found else float("inf")
    limit, used = (_read(Path("/sys/fs/cgroup") / f"memory.{name}").strip() for name in ("max", "current"))
    return min(free, float(limit) - float(used)) if limit.isdigit() and used.isdigit() else free


def _saved_values(model: Model, block: Block, settings: GkdSettings) -> float:
    """Numbers of four bytes that autograd keeps of one layer, per token."""
    hidden, query = model.hidden_size, model.num_heads * model.head_dim
    low = 1.0 if settings.precision == "fp32" else 0.5  # inputs of products are kept in their format
    saved = 0.0
    match block.mixer:
        case Attention(num_kv_heads=num_kv_heads):
            group = num_kv_heads * model.head_dim
            saved += (2 + low) * hidden + low * (3 * query + 2 * group + 2 * (query - group))
        case LinearMixer():
            saved += (2 + low) * hidden
        case NoOp():
            pass
    match block.ffn:
        case GatedFFN(width=width):
            saved += (2 + low) * hidden + 4 * low * width
        case LinearFFN():
            saved += (2 + low) * hidden
        case NoOp():
            pass
    return saved + 5 * hidden * bool(settings.losses.among(OF_STATES))


def _alternatives(work: Work) -> Iterator[tuple[str, Work]]:
    """Thriftier ways to the same end, the least change first, as flags."""
    for recomputes in sorted({work.settings.recomputes_activations, True}):
        parts = work.settings.parts
        while parts <= work.windows:
            settings = replace(work.settings, parts=parts, recomputes_activations=recomputes)
            if settings != work.settings:
                words = f"--accumulate {parts}" + " --checkpoint-activations" * recomputes
                yield words, replace(work, settings=settings)
            parts *= 2


def _show(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
