"""torch's contestants for race.py: transformers run eagerly in fp16, which is the reference, and a compiled decoder."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from race_players import Entry, Player, prompt_of, texts_of
from race_static import Room, StaticModel
from raced_models import WARM_TOKENS, Plan
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

    def logits(self, name: str) -> np.ndarray:
        return said_by(self._children[name], self.entry.plan)

    def decode_s(self, name: str, context: int, batch: int) -> float:
        child, plan = self._children[name], self.entry.plan
        cache = DynamicCache(config=child.config)
        ids_B1 = _next(child, _ids(child, plan, context, batch), cache)
        for _ in range(WARM_TOKENS):
            ids_B1 = _next(child, ids_B1, cache)
        return _timed(partial(_write, child, ids_B1, cache, plan.new_tokens)) / plan.new_tokens

    def prefill_s(self, name: str, tokens: int, batch: int) -> float:
        child = self._children[name]
        ids_BT = _ids(child, self.entry.plan, tokens, batch)
        return _timed(lambda: _next(child, ids_BT, DynamicCache(config=child.config)))

    def reference(self, name: str, stored: Model) -> np.ndarray:
        """What the model says with its weights rounded to other formats."""
        return said_by(reference_of(stored, self.weights[name]), self.entry.plan)


@torch.inference_mode()
def said_by(child: PreTrainedModel, plan: Plan) -> np.ndarray:
    """The logits that every contestant is held against, logits_SV, in one pass over each text."""
    found = []
    for text in texts_of(plan):
        ids_1T = torch.tensor(text.prompt + text.forced, device=child.device)[None]
        logits_1TV = child(ids_1T, use_cache=False, logits_to_keep=1 + len(text.forced)).logits
        found.append(logits_1TV[0].float().cpu().numpy())
    return np.concatenate(found)


def _ids(child: PreTrainedModel, plan: Plan, tokens: int, batch: int) -> torch.Tensor:
    return torch.tensor([prompt_of(plan, tokens)] * batch, device=child.device)


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

    def logits(self, name: str) -> np.ndarray:
        found = []
        for text in texts_of(self.entry.plan):
            room, ids_1T = self._room(name, len(text.prompt), 1), np.array([text.prompt])
            is_prompt = not text.forced
            found.append((room.read_fast(ids_1T) if is_prompt else room.read(ids_1T)).float().cpu().numpy())
            for index, token in enumerate(text.forced):
                room.at(len(text.prompt) + index, np.array([token]))
                found.append(room.step().float().cpu().numpy())
        return np.concatenate(found)

    def decode_s(self, name: str, context: int, batch: int) -> float:
        plan, room = self.entry.plan, self._room(name, context, batch)
        prompt = prompt_of(plan, context)
        room.read(np.array([prompt] * batch))
        room.at(context, np.array([prompt[-1]] * batch))
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
        room, ids_BT = self._room(name, tokens, batch), np.array([prompt_of(self.entry.plan, tokens)] * batch)
        return _timed(lambda: room.read_fast(ids_BT).argmax(-1))

    def _room(self, name: str, tokens: int, batch: int) -> Room:
        key = name, tokens, batch
        if key not in self._rooms:
            slots = slots_for(tokens + WARM_TOKENS + self.entry.plan.new_tokens)
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
