"""Where new tokens stand and what they may see, by torch on any device: the twin of `places`, for CUDA graphs.

Shapes: B batch, T new tokens, S slots.
"""

from collections.abc import Mapping
from typing import assert_never

import torch

from blockwright.compile.standard import mask_name
from blockwright.spec import Attention, Full, Model, Reach, Window


def place_inputs(model: Model, shape_BTS: tuple[int, int, int], device: torch.device) -> dict[str, torch.Tensor]:
    """Room for what a graph of the standard flavour reads of T new tokens beside the caches, by name.

    Their ids and which of them to return logits for are 0 until they are written; the rest is written by `place`.
    """
    batch, num_tokens, slots = shape_BTS
    whole = {"ids": (batch, num_tokens), "last": (batch,), "positions": (batch, num_tokens), "write_index": (batch,)}
    made = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in whole.items()}
    for reach in reaches_of(model):
        made[mask_name(reach)] = torch.zeros((batch, 1, num_tokens, slots), dtype=torch.bool, device=device)
    return made


def reaches_of(model: Model) -> list[Reach]:
    """The reaches that a model's layers have, each once."""
    reaches = (block.mixer.reach for block in model.layers if isinstance(block.mixer, Attention))
    return list(dict.fromkeys(reaches))


def place(inputs: Mapping[str, torch.Tensor], reaches: list[Reach], starts_B: torch.Tensor) -> None:
    """Writes where T new tokens stand, from these positions on; slot and position are the same number."""
    new_T = torch.arange(inputs["positions"].shape[1], device=starts_B.device)
    positions_BT = starts_B[:, None] + new_T
    inputs["positions"].copy_(positions_BT)
    inputs["write_index"].copy_(starts_B)
    for reach in reaches:
        mask_B1TS = inputs[mask_name(reach)]
        mask_B1TS.copy_(_visible(reach, positions_BT, mask_B1TS.shape[-1])[:, None])


def _visible(reach: Reach, positions_BT: torch.Tensor, slots: int) -> torch.Tensor:
    slot_S = torch.arange(slots, device=positions_BT.device)
    is_there_BTS = slot_S <= positions_BT[..., None]
    match reach:
        case Full():
            return is_there_BTS
        case Window(num_tokens=num_tokens):
            return is_there_BTS & (slot_S > positions_BT[..., None] - num_tokens)
        case _:
            assert_never(reach)
