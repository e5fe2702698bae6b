"""What a TensorRT network reads beside tokens and caches, written by torch on the device, for CUDA graphs.

The twin of `places`, for caches in which slot and position are the same number; and for those that a window's tokens
go round in (`caches_of`), where a position's slot is what is left of it after whole rounds.

A step for one token does this anew, in kernels whose starting is what they cost: so what does not change is made once,
and what slot and position being the same number spares is spared.

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
        self._slots = slots
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
        self._new_T = torch.arange(num_tokens, device=device)
        if "positions" in names:
            self.inputs["positions"] = self._positions_BT
        for held in dict.fromkeys(caches_of(model, slots).values()):
            own = held.num_slots
            if (index_B := add(index_name(held), (batch,))) is not None:
                self._writes.append(_index_writer(index_B, own if held.goes_round else None))
            for name, is_before in (
                (mask_name(held.reach, held.goes_round), False),
                (past_mask_name(held.reach, held.goes_round), True),
            ):
                if (mask_B1TS := add(name, (batch, 1, num_tokens, own), torch.bool)) is not None:
                    make = _mask_writer_around if held.goes_round else _mask_writer
                    self._writes.append(make(mask_B1TS, held.reach, is_before))
            if (
                mask_B1TT := add(new_mask_name(held.reach), (batch, 1, num_tokens, num_tokens), torch.bool)
            ) is not None:
                # Wherever new tokens stand, they see each other alike.
                mask_B1TT.copy_(_sees(held.reach, self._new_T[:, None], self._new_T))

    def write(self, starts_B: torch.Tensor) -> None:
        """Writes where the tokens stand, from these positions on, and what they may see."""
        torch.add(starts_B[:, None], self._new_T, out=self._positions_BT)
        for each in self._writes:
            each(self._positions_BT)

    def keep(self, cache_BJSD: torch.Tensor, new_BJTD: torch.Tensor) -> None:
        """Writes keys or values of the tokens into a cache, for networks that do not do so themselves."""
        goes_round = cache_BJSD.shape[2] < self._slots
        slot_BT = self._positions_BT.remainder(cache_BJSD.shape[2]) if goes_round else self._positions_BT
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


def _index_writer(index_B: torch.Tensor, slots: int | None) -> Callable[[torch.Tensor], None]:
    """Of where the first token goes; None where its slot is its position."""

    def write(positions_BT: torch.Tensor) -> None:
        if slots is None:
            index_B.copy_(positions_BT[:, 0])
        else:
            torch.remainder(positions_BT[:, 0], slots, out=index_B)

    return write


def _mask_writer(mask_B1TS: torch.Tensor, reach: Reach, is_before: bool) -> Callable[[torch.Tensor], None]:
    """Of caches whose slots have their own positions: before this run's tokens are in them, or after."""
    slot_S = torch.arange(mask_B1TS.shape[-1], device=mask_B1TS.device)
    unseen_from_S = slot_S + reach.num_tokens if isinstance(reach, Window) else None

    def write(positions_BT: torch.Tensor) -> None:
        if is_before:
            torch.lt(slot_S, positions_BT[:, None, :1, None], out=mask_B1TS[:, :, :1])
            mask_B1TS[:, :, 1:] = mask_B1TS[:, :, :1]
        else:
            torch.le(slot_S, positions_BT[:, None, :, None], out=mask_B1TS)
        if unseen_from_S is not None:
            mask_B1TS.logical_and_(positions_BT[:, None, :, None] < unseen_from_S)

    return write


def _mask_writer_around(mask_B1TS: torch.Tensor, reach: Reach, is_before: bool) -> Callable[[torch.Tensor], None]:
    """The same of caches that tokens go round in. It would do for the others too."""
    slot_S = torch.arange(mask_B1TS.shape[-1], device=mask_B1TS.device)

    def write(positions_BT: torch.Tensor) -> None:
        last_B1 = positions_BT[:, :1] - 1 if is_before else positions_BT[:, -1:]
        # The latest position up to the last one that a slot is the place of; below 0 for none.
        held_B1S = (last_B1 - (last_B1 - slot_S).remainder(len(slot_S)))[:, None]
        mask_BTS = (held_B1S >= 0) & _sees(reach, positions_BT[..., None], held_B1S)
        mask_B1TS.copy_(mask_BTS[:, None])

    return write


def _sees(reach: Reach, seeing: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Whether what stands at one position may look at another."""
    match reach:
        case Full():
            return seen <= seeing
        case Window(num_tokens=num_tokens):
            return (seen <= seeing) & (seen > seeing - num_tokens)
        case _:
            assert_never(reach)
