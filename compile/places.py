"""In which pieces prompts are read, where new tokens stand and what they may see, for runtimes of every kind.

Shapes: B batch, T new tokens, S slots, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from blockwright.compile.decomposed import new_mask_name, past_mask_name
from blockwright.compile.slots import PREFILL_CHUNK
from blockwright.compile.standard import mask_name
from blockwright.spec import Attention, Full, Model, Reach, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a batch of prompts, shorter ones padded on the right."""

    start: int
    ids_BT: np.ndarray
    last_B: np.ndarray
    """The last token of each prompt, or any where it stands in another piece."""
    ends_here_B: np.ndarray


def chunks_of_prompts(prompts: Sequence[Sequence[int]]) -> Iterator[Chunk]:
    """The pieces that a batch of prompts is read in."""
    lengths_B = np.array([len(prompt) for prompt in prompts])
    ids_BT = np.zeros((len(prompts), lengths_B.max()), dtype=np.int64)
    for row, prompt in zip(ids_BT, prompts, strict=True):
        row[: len(prompt)] = prompt
    for start in range(0, ids_BT.shape[1], PREFILL_CHUNK):
        chunk_BT = ids_BT[:, start : start + PREFILL_CHUNK]
        last_B = lengths_B - 1 - start
        yield Chunk(
            start=start,
            ids_BT=chunk_BT,
            last_B=last_B.clip(0, chunk_BT.shape[1] - 1),
            ends_here_B=(last_B >= 0) & (last_B < chunk_BT.shape[1]),
        )


def logits_after(prompts: Sequence[Sequence[int]], vocab_size: int, read: Callable[[Chunk], np.ndarray]) -> np.ndarray:
    """Reads a batch of prompts piece by piece, by a function that gives logits_BV at `last_B`; logits_BV after each."""
    logits_BV = np.zeros((len(prompts), vocab_size), dtype=np.float32)
    for chunk in chunks_of_prompts(prompts):
        found_BV = read(chunk)
        logits_BV[chunk.ends_here_B] = found_BV[chunk.ends_here_B]
    return logits_BV


def reach_by_mask(model: Model) -> dict[str, Reach]:
    """The reaches that a model's layers have, by the names of their masks."""
    reaches = [block.mixer.reach for block in model.layers if isinstance(block.mixer, Attention)]
    return {mask_name(reach): reach for reach in reaches}


def places(
    masks: Mapping[str, Reach], starts_B: np.ndarray, num_tokens: int, slot_S: np.ndarray
) -> dict[str, Callable[[], np.ndarray]]:
    """What each input that any flavour may have says of T new tokens from these positions on, made when asked for.

    Slot and position are the same number.
    """
    positions_BT = starts_B[:, None] + np.arange(num_tokens)
    known: dict[str, Callable[[], np.ndarray]] = {
        "positions": lambda: positions_BT,
        "write_index": lambda: starts_B,
        "last_slot": lambda: positions_BT[:, -1],
        "total_length": lambda: positions_BT.max() + 1,
    }
    for name, reach in masks.items():
        known[name] = partial(_for_all_heads, visible, reach, positions_BT, slot_S)
        known[past_mask_name(reach)] = partial(_for_all_heads, visible_before, reach, positions_BT, slot_S)
        known[new_mask_name(reach)] = partial(_for_all_heads, visible_among, reach, positions_BT)
    return known


def _for_all_heads(visible_to: Callable[..., np.ndarray], *place: Any) -> np.ndarray:
    return visible_to(*place)[:, None]


def visible(reach: Reach, positions_BT: np.ndarray, slot_S: np.ndarray) -> np.ndarray:
    """Which slots tokens at these positions may see, mask_BTS; slot and position are the same number."""
    mask_BTS = slot_S <= positions_BT[..., None]
    if isinstance(reach, Window):
        mask_BTS &= slot_S > positions_BT[..., None] - reach.num_tokens
    else:
        assert isinstance(reach, Full)
    return mask_BTS


def visible_before(reach: Reach, positions_BT: np.ndarray, slot_S: np.ndarray) -> np.ndarray:
    """Which slots, of those filled before the first of these tokens, they may see, mask_BTS."""
    return visible(reach, positions_BT, slot_S) & (slot_S < positions_BT[:, :1, None])


def visible_among(reach: Reach, positions_BT: np.ndarray) -> np.ndarray:
    """Which of these tokens, one behind the other, they may see, mask_BTT."""
    return visible(reach, positions_BT - positions_BT[:, :1], np.arange(positions_BT.shape[1]))
