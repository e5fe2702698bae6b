"""How much memory a distillation will take, told before it starts, and what would fit where it does not.

    weights       4 bytes a parameter of the child; 4 or 2 of what training needs of the parent; 2 of the child's copy
                  in bf16: of all layers or, where layers are run again, of one
    gradients     4 bytes a parameter of the child
    optimiser     8 bytes a parameter (AdamW), 4 of a matrix (Muon)
    workspace     what a step of Muon takes beside that (`muon.py`), when activations are gone
    activations   what autograd keeps of the child's layers for one part of a batch: all of it, or, where layers are run
                  again, what enters each layer and the whole of the largest one
    logits        four or five chunks of logits, and the head's gradient, in fp32 (`chunked_kl.py`)
    gathered      of several ranks: what each has whole for a while, embeddings, heads and two layers
    allocator     on a CPU: blocks below 32 MiB leave holes in the heap
    beforehand    both models in fp32, as they are loaded, and what judging takes: states, the widest layer, six chunks
                  of logits (`quality.py`); not at the same time as the others
    afterwards    of several ranks on CPUs: the whole child, on the first

Activations, logits and gradients are not at their highest at once, so the total is less than their sum. Counted from
the specs, per token, with the values that stock transformers' layers save; held against real peaks in
tests/train/test_memory.py. Not counted: the interpreter and its libraries, which are there already.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from blockwright.count import block_parameters, ffn_matrices, mixer_matrices, parameters
from blockwright.errors import InputError
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp
from blockwright.train.chunked_kl import CHUNK_TOKENS
from blockwright.train.distill import GkdSettings
from blockwright.train.losses import OF_LOGITS, OF_STATES
from blockwright.train.muon import workspace_bytes
from blockwright.train.quality import JUDGED_WINDOWS

_RESERVE = 1.25
"""A prediction may be so much too low (real peaks of small runs: 0.7 to 1.2 times)."""
_HEAP_BYTES = 2**25
"""glibc keeps freed blocks up to this size for itself (M_MMAP_THRESHOLD's upper bound, mallopt(3))."""
_HOLES = 0.85
"""Holes in the heap, as a share of what comes and goes. Measured with tests/train/test_memory.py under glibc: resident
memory was 70 to 170 MB above live tensors, 0.4 to 1.1 times what comes and goes; none with mmap for all blocks."""
_JUDGED_LOGITS = 6
"""Chunks of logits that live at once in `quality.py`: both models', their logarithms, and two between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes, by what they are for."""

    parent_bytes: float
    child_bytes: float
    gradients_bytes: float
    optimiser_bytes: float
    workspace_bytes: float
    activations_bytes: float
    logits_bytes: float
    gathered_bytes: float
    allocator_bytes: float
    beforehand_bytes: float
    afterwards_bytes: float
    total_bytes: float
    """At the peak."""


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
    masks_documents: bool = False
    has_answers: bool = False
    """Whether the parent's next tokens are looked up."""
    is_judged: bool = False
    """Whether the child is judged before and after."""
    has_gpu: bool = False


def predict_memory(work: Work) -> Memory:
    """The peak of one rank's memory."""
    settings, child = work.settings, work.child
    num_child = parameters(child)
    tokens = -(-work.windows // settings.parts) * work.window_tokens
    layers = [4 * tokens * _saved_values(work, block) for block in child.layers]
    state = 4 * tokens * child.hidden_size
    num_states = 1 + bool(settings.losses.among(OF_STATES))
    largest = max(layers, default=0.0) if settings.recomputes_activations else 0.0
    kept = sum(layers) if not settings.recomputes_activations else num_states * state * len(layers)
    kept += 6 * state  # what enters the first layer and leaves the last norm, of both, and its gradient
    optimiser, workspace = _optimiser(work)
    weights = {
        "parent_bytes": _width(settings) * _num_needed(work) / work.num_ranks,
        "child_bytes": 4 * num_child / work.num_ranks + _copied(work),
        "optimiser_bytes": optimiser,
        "gathered_bytes": _gathered(work) if work.num_ranks > 1 else 0.0,
    }
    gradients = 4 * num_child / work.num_ranks
    chunks, head_gradient = _logits(work, tokens)
    forward = kept + chunks + head_gradient + (gradients if settings.parts > 1 else 0)
    backward = max(gradients + kept + largest if largest else gradients, kept + 2 * head_gradient)
    holes = _in_heap(state, kept - 6 * state + largest) + _in_heap(chunks / 4, chunks)
    allocator = 0 if work.has_gpu else _HOLES * holes
    training = sum(weights.values()) + max(forward + allocator, backward + allocator, gradients + workspace)
    beforehand = 4 * (num_child + parameters(work.parent)) / work.num_ranks + _judging(work)
    afterwards = 4 * num_child * (1 + 1 / work.num_ranks) if work.num_ranks > 1 and not work.has_gpu else 0.0
    return Memory(
        **weights,
        gradients_bytes=gradients,
        workspace_bytes=workspace,
        activations_bytes=kept + largest,
        logits_bytes=chunks + head_gradient,
        allocator_bytes=allocator,
        beforehand_bytes=beforehand,
        afterwards_bytes=afterwards,
        total_bytes=max(training, beforehand, afterwards),
    )


def check_memory(work: Work, device: torch.device) -> Memory:
    """Predicts, and refuses what cannot fit.

    Raises:
        InputError: it takes more than there is; says what would fit.
    """
    free = free_bytes(device)
    if device.type == "cpu":
        free /= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks of one machine share its memory
    memory = predict_memory(work)
    if memory.total_bytes * _RESERVE <= free:
        return memory
    names = {field.name: field.name.removesuffix("_bytes") for field in fields(memory) if field.name != "total_bytes"}
    parts = ", ".join(f"{name} {_show(getattr(memory, field))}" for field, name in names.items())
    ways = (words for words, other in _alternatives(work) if predict_memory(other).total_bytes * _RESERVE <= free)
    found = next(ways, None)
    least = min(predict_memory(other).total_bytes for _, other in [("", work), *_alternatives(work)])
    raise InputError(
        f"memory of {device}",
        got=f"{_show(free)} free",
        expected=f"{_show(memory.total_bytes * _RESERVE)}: {parts}, not all at once, and a quarter in reserve",
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


def _width(settings: GkdSettings) -> int:
    return 4 if settings.precision == "fp32" else 2


def _optimiser(work: Work) -> tuple[float, float]:
    """What the optimiser keeps, and what a step of it takes for a while."""
    kept = 8.0 * parameters(work.child)
    if work.settings.optimizer == "adamw":
        return kept / work.num_ranks, 0.0
    found = [(mixer_matrices(work.child, b.mixer), ffn_matrices(work.child, b.ffn)) for b in work.child.layers]
    shapes = [(outputs, inputs) for mixer, ffn in found for inputs, outputs in (*mixer, *ffn)]
    kept -= 4.0 * sum(rows * columns for rows, columns in shapes)
    return kept / work.num_ranks, float(workspace_bytes(shapes))


def _copied(work: Work) -> float:
    """The child in bf16: autograd keeps what products have read, and a layer that is run again is let go before."""
    if work.settings.precision == "fp32":
        return 0.0
    blocks = [block_parameters(work.child, block) for block in work.child.layers]
    return 2.0 * (max(blocks, default=0) if work.settings.recomputes_activations else sum(blocks))


def _judging(work: Work) -> float:
    """What both models hold beside their weights, for the first windows of a batch; parents are at least as wide."""
    if not work.is_judged:
        return 0.0
    tokens = JUDGED_WINDOWS * work.window_tokens
    plain = replace(work, settings=replace(work.settings, precision="fp32"), masks_documents=False)
    models = [replace(plain, child=work.parent), plain]
    largest = max(_saved_values(each, block) for each in models for block in each.child.layers)
    logits = _JUDGED_LOGITS * min(CHUNK_TOKENS, tokens) * work.child.vocab_size
    gathered = _gathered(work) if work.num_ranks > 1 else 0.0
    return 4 * tokens * (2 * work.child.hidden_size + largest) + 4 * logits + gathered


def _num_needed(work: Work) -> int:
    """The parent's parameters that training needs."""
    if not work.has_answers:
        return parameters(work.parent)
    return parameters(work.parent) if work.settings.losses.among(OF_STATES) else 0


def _gathered(work: Work) -> float:
    """The child's and parent's weights outside layers and in two layers, and as many gradients of the child's."""
    needed = [(work.child, 8)] + ([(work.parent, _width(work.settings))] if _num_needed(work) else [])
    total = 0.0
    for model, width in needed:
        blocks = [block_parameters(model, block) for block in model.layers]
        total += width * (parameters(model) - sum(blocks) + 2 * max(blocks, default=0))
    return total


def _logits(work: Work, tokens: int) -> tuple[float, float]:
    """Chunks of logits, and the head's gradient, with copies of heads in bf16."""
    names = work.settings.losses.among(OF_LOGITS)
    if not names:
        return 0.0, 0.0
    head = work.child.vocab_size * work.child.hidden_size
    num_chunks = 4 if len(names) == 1 else 5
    chunks = 4 * num_chunks * min(CHUNK_TOKENS, tokens) * work.child.vocab_size
    return chunks, head * (4 if work.settings.precision == "fp32" else 8)


def _in_heap(block_bytes: float, num_bytes: float) -> float:
    return num_bytes if block_bytes < _HEAP_BYTES else 0.0


def _saved_values(work: Work, block: Block) -> float:
    """Numbers of four bytes that autograd keeps of one layer, per token."""
    model, settings = work.child, work.settings
    hidden, query = model.hidden_size, model.num_heads * model.head_dim
    low = _width(settings) / 4  # inputs of products are kept in their format
    saved = 0.0
    match block.mixer:
        case Attention(num_kv_heads=num_kv_heads):
            group = num_kv_heads * model.head_dim
            saved += (2 + low) * hidden + low * 2 * (query + group)
            if work.masks_documents:  # keys and values are repeated for each head, and the mask is kept with each layer
                saved += low * 2 * (query - group) + work.window_tokens
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
    return saved + hidden * len(settings.losses.among(OF_STATES))


def _alternatives(work: Work) -> Iterator[tuple[str, Work]]:
    """Thriftier ways to the same end, the least change first, as flags."""
    if work.is_judged:
        yield "--quality-tokens 0", replace(work, is_judged=False)
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
