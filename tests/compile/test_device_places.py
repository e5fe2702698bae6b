"""Places by torch against their twin of numpy, and against a cache that is written token by token."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blockwright.compile.device_places import Places, caches_by_new, make_cache
from blockwright.compile.places import places, reach_by_mask
from blockwright.compile.sampling import Sampling
from blockwright.compile.slots import PREFILL_CHUNK, Held, caches_of
from blockwright.compile.torch_sampling import Drawer
from blockwright.llama import llama
from blockwright.spec import Attention, Block, Full, GatedFFN, NoOp, Reach, Window

MODEL = llama(
    (
        Block(mixer=Attention(num_kv_heads=2), ffn=NoOp()),
        Block(mixer=Attention(num_kv_heads=1, reach=Window(num_tokens=3)), ffn=GatedFFN(width=32)),
        Block(mixer=Attention(num_kv_heads=2, reach=Window(num_tokens=9)), ffn=NoOp()),
    ),
    hidden_size=32,
    num_heads=2,
    head_dim=16,
    vocab_size=20,
    max_positions=64,
)
SLOTS = 3 * PREFILL_CHUNK
"""So many that a short window goes round in fewer."""
CPU = torch.device("cpu")


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> None: ...

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_where_no_window_goes_round_places_are_those_of_numpy(num_tokens: int) -> None:
    starts_B, slots = np.array([0, 7, 30]), 40
    expected = places(reach_by_mask(MODEL), starts_B, num_tokens, np.arange(slots))
    found = Places(MODEL, (3, num_tokens, slots), _Everything(), CPU)  # type: ignore[arg-type]
    found.write(torch.from_numpy(starts_B))
    assert found.inputs.keys() - {"ids", "last"} == expected.keys() - {"last_slot", "total_length"}
    for name in found.inputs.keys() - {"ids", "last"}:
        np.testing.assert_array_equal(found.inputs[name].numpy(), expected[name](), err_msg=name)


class _Kernels(TorchDispatchMode):
    """Counts what a device would have to start: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.num += not func.is_view and out.numel() > 0
        return out


@pytest.mark.parametrize(("num_layers", "most"), [(1, 3), (2, 6)], ids=["all are seen", "a window beside"])
def test_a_step_of_one_token_starts_few_kernels(num_layers: int, most: int) -> None:
    model = replace(MODEL, layers=MODEL.layers[:num_layers])
    found = Places(model, (1, 1, 64), {"ids", "last", "positions", "write_index", "mask", "mask_window_3"}, CPU)
    starts_B = torch.tensor([7])
    with _Kernels() as kernels:
        found.write(starts_B)
    assert 0 < kernels.num <= most
    logits_BV = torch.zeros(1, 20)
    drawer = Drawer(Sampling(temperature=0), 8, logits_BV)
    with _Kernels() as kernels:
        drawer.draw(logits_BV)
    assert kernels.num == 1


def test_only_what_a_network_has_is_made() -> None:
    names = {"ids", "last", "write_index", "mask_window_9"}
    assert Places(MODEL, (1, 1, 64), names, CPU).inputs.keys() == names
    assert Places(replace(MODEL, layers=()), (1, 1, 64), {"ids", "last"}, CPU).inputs.keys() == {"ids", "last"}


def _held_slots(held: Held, num_written: int) -> list[int | None]:
    """The position in each slot of a cache that was written token by token, None for none."""
    slots: list[int | None] = [None] * held.num_slots
    for position in range(num_written):
        slots[position % len(slots)] = position
    return slots


def _sees(reach: Reach, position: int, other: int | None) -> bool:
    nearest = position - other if other is not None else -1
    return nearest >= 0 and (isinstance(reach, Full) or nearest < reach.num_tokens)


@pytest.mark.parametrize(("start", "num_tokens"), [(0, 5), (0, 1), (900, 1), (1024, 400), (1030, 1), (1535, 1)])
def test_masks_show_what_slots_hold_however_often_they_went_round(start: int, num_tokens: int) -> None:
    assert {held.num_slots for held in caches_of(MODEL, SLOTS).values()} == {SLOTS, 2 * PREFILL_CHUNK}
    found = Places(MODEL, (1, num_tokens, SLOTS), _Everything(), CPU)  # type: ignore[arg-type]
    found.write(torch.tensor([start]))
    for held in caches_of(MODEL, SLOTS).values():
        reach, before, after = held.reach, _held_slots(held, start), _held_slots(held, start + num_tokens)
        word = "" if isinstance(reach, Full) else f"_window_{reach.num_tokens}"
        around = "_around" if held.goes_round else ""
        for row in {0, num_tokens // 2, num_tokens - 1}:
            position = start + row
            names = {"": word + around, "_past": word + around, "_new": word}
            masks = {name: found.inputs[f"mask{name}{rest}"][0, 0, row].tolist() for name, rest in names.items()}
            assert masks[""] == [_sees(reach, position, other) for other in after]
            assert masks["_past"] == [_sees(reach, position, other) for other in before]
            assert masks["_new"] == [_sees(reach, position, start + other) for other in range(num_tokens)]
            num_seen = position + 1 if isinstance(reach, Full) else min(position + 1, reach.num_tokens)
            assert sum(masks[""]) == sum(masks["_past"]) + sum(masks["_new"]) == num_seen


def test_what_is_kept_goes_where_the_masks_will_look_for_it() -> None:
    cache = make_cache(MODEL, 2, SLOTS, torch.float32, CPU)
    assert {name: tensor.shape[2] for name, tensor in cache.items() if "key" in name} == {
        "past_key_0": SLOTS,
        "past_key_1": 2 * PREFILL_CHUNK,
        "past_key_2": 2 * PREFILL_CHUNK,
    }
    found = Places(MODEL, (2, 4, SLOTS), {"ids", "last"}, CPU)
    starts_B = torch.tensor([1022, 40])
    found.write(starts_B)
    for name, old_BJSD in caches_by_new(cache).items():
        new_BJTD = torch.randn(2, old_BJSD.shape[1], 4, 16)
        found.keep(old_BJSD, new_BJTD)
        for row, start in enumerate(starts_B.tolist()):
            for token in range(4):
                slot = (start + token) % old_BJSD.shape[2]
                assert torch.equal(old_BJSD[row, :, slot], new_BJTD[row, :, token]), name
        assert int((old_BJSD != 0).any(dim=3).sum()) == 2 * 4 * old_BJSD.shape[1]
