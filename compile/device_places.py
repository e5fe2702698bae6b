"""What a TensorRT network reads beside tokens and caches, written by torch on the device, for CUDA graphs.

The twin of `places`, for caches in which slot and position are the same number; and for those that a window's tokens
go round in (`caches_of`), where a position's slot is what is left of it after whole rounds.

Shapes: B batch, T new tokens, S slots, J heads of keys and values, D head size.
"""

from collections.abc import Callable, Collection, Mapping
from typing import assert_never

import torch

from blockwright.compile.decomposed import new_mask_name, past_mask_name
from blockwright.compile.slots import caches_of
from blockwright.compile.standard import index_name, mask_name
from blockwright.spec import Attention, Full, Model, Reach, Window


class Places:
    """Inputs for T new tokens of each sequence, at addresses that stay."""

    def __init__(
        self, model: Model, shape_BTS: tuple[int, int, int], names: Collection[str], device: torch.device
    ) -> None:
        """Makes those inputs that a network has by these names; `ids` and `last` are the caller's to write."""
        batch, num_tokens, slots = shape_BTS
        self.inputs: dict[str, torch.Tensor] = {}
        self._writes: list[Callable[[torch.Tensor], None]] = []

        def add(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> torch.Tensor | None:
            """None of what the network has not, and of what it has already: reaches may share an index."""
            if name not in names or name in self.inputs:
                return None
            self.inputs[name] = torch.zeros(shape, dtype=dtype, device=device)
            return self.inputs[name]

        add("ids", (batch, num_tokens))
        add("last", (batch,))
        self._positions_BT = torch.zeros((batch, num_tokens), dtype=torch.int64, device=device)
        if "positions" in names:
            self.inputs["positions"] = self._positions_BT
        for held in dict.fromkeys(caches_of(model, slots).values()):
            own = held.num_slots
            if (index_B := add(index_name(held), (batch,))) is not None:
                self._writes.append(_index_writer(index_B, own))
            for name, size, of in (
                (mask_name(held.reach, held.goes_round), own, _held_after),
                (past_mask_name(held.reach, held.goes_round), own, _held_before),
                (new_mask_name(held.reach), num_tokens, _new),
            ):
                if (mask_B1TS := add(name, (batch, 1, num_tokens, size), torch.bool)) is not None:
                    self._writes.append(_mask_writer(mask_B1TS, held.reach, of))

    def write(self, starts_B: torch.Tensor) -> None:
        """Writes where the tokens stand, from these positions on, and what they may see."""
        new_T = torch.arange(self._positions_BT.shape[1], device=starts_B.device)
        self._positions_BT.copy_(starts_B[:, None] + new_T)
        for each in self._writes:
            each(self._positions_BT)

    def keep(self, cache_BJSD: torch.Tensor, new_BJTD: torch.Tensor) -> None:
        """Writes keys or values of the tokens into a cache, for networks that do not do so themselves."""
        slot_BT = self._positions_BT.remainder(cache_BJSD.shape[2])
        cache_BJSD.scatter_(2, slot_BT[:, None, :, None].expand_as(new_BJTD), new_BJTD)


def make_cache(
    model: Model, batch: int, slots: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Empty key-value buffers for every attention layer, by the graph's input names, ``past_key_3`` and so on."""
    cache, held = dict[str, torch.Tensor](), caches_of(model, slots)
    for index, block in enumerate(model.layers):
        if isinstance(block.mixer, Attention):
            shape = (batch, block.mixer.num_kv_heads, held[index].num_slots, model.head_dim)
            for word in ("key", "value"):
                cache[f"past_{word}_{index}"] = torch.zeros(shape, dtype=dtype, device=device)
    return cache


def caches_by_new(cache: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Caches by the names of what a network that does not update them itself adds to each."""
    return {name.replace("past_", "new_", 1): tensor for name, tensor in cache.items()}


def _index_writer(index_B: torch.Tensor, slots: int) -> Callable[[torch.Tensor], None]:
    def write(positions_BT: torch.Tensor) -> None:
        index_B.copy_(positions_BT[:, 0].remainder(slots))

    return write


def _mask_writer(
    mask_B1TS: torch.Tensor, reach: Reach, held: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], None]:
    def write(positions_BT: torch.Tensor) -> None:
        slot_S = torch.arange(mask_B1TS.shape[-1], device=positions_BT.device)
        held_B1S, seeing_BT1 = held(positions_BT, slot_S)[:, None], positions_BT[..., None]
        mask_BTS = (held_B1S >= 0) & (held_B1S <= seeing_BT1)
        match reach:
            case Full():
                pass
            case Window(num_tokens=num_tokens):
                mask_BTS &= held_B1S > seeing_BT1 - num_tokens
            case _:
                assert_never(reach)
        mask_B1TS.copy_(mask_BTS[:, None])

    return write


def _held_after(positions_BT: torch.Tensor, slot_S: torch.Tensor) -> torch.Tensor:
    """The position that each slot holds once the tokens are in their caches, below 0 for none, BS."""
    return _held(positions_BT[:, -1:], slot_S)


def _held_before(positions_BT: torch.Tensor, slot_S: torch.Tensor) -> torch.Tensor:
    """The same before they are."""
    return _held(positions_BT[:, :1] - 1, slot_S)


def _held(last_B1: torch.Tensor, slot_S: torch.Tensor) -> torch.Tensor:
    """The latest position up to the last one that a slot is the place of."""
    return last_B1 - (last_B1 - slot_S).remainder(len(slot_S))


def _new(positions_BT: torch.Tensor, slot_S: torch.Tensor) -> torch.Tensor:
    """The positions of the tokens themselves."""
    return positions_BT[:, :1] + slot_S
