"""Loads a child and its parent as shares, learns a step and keeps it, as `test_loading.py` starts it on ranks."""

import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blockwright.model.child import empty_child, spec_of_child
from blockwright.train.loading import empty_parent, load_shares
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import Sharded, joined, whole
from blockwright.train.state import load_state, save_state

IDS_BT = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(5))
CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made meanwhile took at once; not of device meta, and not files that are mapped."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._count(getattr(tensor, "_local_tensor", tensor).untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or storage.filename is not None:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def run(ranks: Ranks, folder: Path) -> None:
    """Writes the loaded weights whole, what they say, and what came back after a step was kept."""
    spec = spec_of_child(folder / "child")
    assert spec is not None
    with LiveBytes() as live:
        child = load_shares(empty_child(folder / "child", spec), folder / "child", ranks, CPU)
        parent = load_shares(empty_parent(folder / "parent"), folder / "parent", ranks, CPU).requires_grad_(False)
    half = load_shares(empty_parent(folder / "parent"), folder / "parent", ranks, CPU, torch.bfloat16)
    found = {"peak": torch.tensor(live.peak)}
    for name, model in {"child": child, "parent": parent, "half": half}.items():
        found |= {f"{name}.{key}": whole(weight.detach()).contiguous() for key, weight in model.named_parameters()}
        with torch.no_grad():
            found[f"{name} says"] = model(IDS_BT, use_cache=False).logits.float()
        assert not any(buffer.is_meta for buffer in model.buffers())
    optimizer = torch.optim.AdamW(child.parameters(), lr=1e-2, fused=True)
    Sharded(child, parent, ranks)(lambda: child(IDS_BT, use_cache=False).logits.square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    with LiveBytes() as live:
        save_state(folder / "state", child, [optimizer], {"steps": 1}, ranks)
    found["peak of saving"] = torch.tensor(live.peak)
    ranks.sum(torch.zeros(()))
    before = {name: whole(weight.detach()).clone() for name, weight in child.named_parameters()}
    moments = [whole(optimizer.state[weight]["exp_avg"]).clone() for weight in child.parameters()]
    again = load_shares(empty_child(folder / "child", spec), folder / "child", ranks, CPU)
    fresh = torch.optim.AdamW(again.parameters(), lr=1e-2, fused=True)
    assert load_state(folder / "state", again, [fresh]) == {"steps": 1}
    for name, weight in again.named_parameters():
        assert torch.equal(whole(weight.detach()), before[name])
    for weight, moment in zip(again.parameters(), moments, strict=True):
        assert torch.equal(whole(fresh.state[weight]["exp_avg"]), moment)
    save_file(found, folder / f"rank-{ranks.rank}.safetensors")


if __name__ == "__main__":
    with joined() as me:
        for each in sys.argv[1:]:
            run(me, Path(each))
    os._exit(0)  # as blockwright/__main__.py does
