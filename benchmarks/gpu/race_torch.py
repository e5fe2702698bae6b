"""torch's contestants for race.py: transformers run eagerly in fp16, which is the reference, and a compiled decoder."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from race_players import Entry, Load, Player, Text, prompts_of, text_of
from race_static import Room, StaticModel
from raced_models import WARM_TOKENS, most_tokens
from torch_reference import reference_of
from transformers import DynamicCache, PreTrainedModel

from blockwright.compile.slots import slots_for
from blockwright.spec import Model

COMPILED_FOR = {"cuda": "inductor", "cpu": "aot_eager"}
"""What compiles: without a GPU only whether it is taken is tried, for which C++ need not be compiled."""
_MOST_SHAPES = 64
"""Of one function that are compiled: every model, batch and length has its own."""


class Eager(Player):
    """transformers as they are, with their growing cache."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry, bytes_per_value=2)
        self._children = {name: reference_of(self.stored[name], self.weights[name]) for name in self.stored}

    def logits(self, name: str, text: Text) -> np.ndarray:
        return said_by(self._children[name], text)

    def decode_s(self, name: str, context: int, batch: int) -> float:
        child, plan = self._children[name], self.entry.plan
        cache = DynamicCache(config=child.config)
        ids_B1 = _next(child, _ids(child, prompts_of(plan, context, batch)), cache)
        for _ in range(WARM_TOKENS):
            ids_B1 = _next(child, ids_B1, cache)
        return _timed(partial(_write, child, ids_B1, cache, plan.new_tokens)) / plan.new_tokens

    def prefill_s(self, name: str, tokens: int, batch: int) -> float:
        child, prompts = self._children[name], prompts_of(self.entry.plan, tokens, batch)
        return _timed(lambda: _next(child, _ids(child, prompts), DynamicCache(config=child.config)))

    def reference(self, name: str, stored: Model) -> dict[Load, np.ndarray]:
        """What the model says, with its weights rounded to other formats, where each load is timed."""
        child, entry = reference_of(stored, self.weights[name]), self.entry
        return {load: said_by(child, text_of(entry.plan, load)) for load in entry.loads}


@torch.inference_mode()
def said_by(child: PreTrainedModel, text: Text) -> np.ndarray:
    """The logits that every contestant is held against, logits_SBV, in one pass over each prompt and what follows."""
    found_BSV = []
    for row, prompt in enumerate(text.prompts):
        ids_1T = _ids(child, [prompt + [ids_B[row] for ids_B in text.forced]])
        found_BSV.append(child(ids_1T, use_cache=False, logits_to_keep=1 + len(text.forced)).logits[0])
    return torch.stack(found_BSV, dim=1).float().cpu().numpy()


def _ids(child: PreTrainedModel, prompts: list[list[int]]) -> torch.Tensor:
    return torch.from_numpy(np.array(prompts)).to(child.device)


@torch.inference_mode()
def _next(child: PreTrainedModel, ids_BT: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    return child(ids_BT, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)


def _write(child: PreTrainedModel, ids_B1: torch.Tensor, cache: DynamicCache, num_tokens: int) -> torch.Tensor:
    written = []
    for _ in range(num_tokens):
        ids_B1 = _next(child, ids_B1, cache)
        written.append(ids_B1)
    return torch.cat(written, dim=1)


class Compiled(Player):
    """Our own decoder with fixed caches, compiled and recorded; caches are as long as each text needs."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry, bytes_per_value=2)
        torch._dynamo.config.recompile_limit = _MOST_SHAPES
        device = torch.device(entry.device)
        self._models = {name: StaticModel(stored, self.weights[name], device) for name, stored in self.stored.items()}
        self._rooms: dict[tuple[str, int, int], Room] = {}

    def logits(self, name: str, text: Text) -> np.ndarray:
        ids_BT, is_prompt = np.array(text.prompts), not text.forced
        room = self._room(name, ids_BT.shape[1], len(ids_BT))
        found_SBV = [(room.read_fast(ids_BT) if is_prompt else room.read(ids_BT)).float().cpu().numpy()]
        for index, ids_B in enumerate(text.forced):
            room.at(ids_BT.shape[1] + index, np.array(ids_B))
            found_SBV.append(room.step().float().cpu().numpy())
        return np.stack(found_SBV)

    def decode_s(self, name: str, context: int, batch: int) -> float:
        plan, room = self.entry.plan, self._room(name, context, batch)
        ids_BT = np.array(prompts_of(plan, context, batch))
        room.read(ids_BT)
        room.at(context, ids_BT[:, -1])
        for _ in range(WARM_TOKENS):
            room.step()

        def write() -> torch.Tensor:
            written = []
            for _ in range(plan.new_tokens):
                room.step()
                written.append(room.ids_B1.clone())
            return torch.cat(written, dim=1)

        return _timed(write) / plan.new_tokens

    def prefill_s(self, name: str, tokens: int, batch: int) -> float:
        room, prompts = self._room(name, tokens, batch), prompts_of(self.entry.plan, tokens, batch)
        return _timed(lambda: room.read_fast(np.array(prompts)).argmax(-1))

    def _room(self, name: str, tokens: int, batch: int) -> Room:
        key = name, tokens, batch
        if key not in self._rooms:
            slots = slots_for(most_tokens(self.entry.plan, tokens))
            backend = COMPILED_FOR[self.entry.device]
            self._rooms[key] = Room(self._models[name], batch, slots, partial(_compiled, backend))
        return self._rooms[key]


def _compiled(backend: str, function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def _timed(work: Callable[[], torch.Tensor]) -> float:
    """Seconds until its tokens are on the host; nothing else is under way before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work().cpu()
    return time.perf_counter() - began


PLAYERS: dict[str, type[Player]] = {"torch eager": Eager, "torch.compile": Compiled}
