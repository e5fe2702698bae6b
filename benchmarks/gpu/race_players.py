"""What a contestant of race.py is: who plays, with which models and texts, and what it is asked for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from raced_models import FULL, SMALL, WARM_TOKENS, Plan, bytes_per_token, child_of, parent_of

from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import parse_format

RACE = replace(FULL, contexts=(128, 2048), rounds=7)
MODELS = ("parent", "child")
_FORCED_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Who plays where."""

    runtime: str
    """As ``torch.compile``."""
    variant: str
    """What else there is to say: the flavour of a graph, the package; else nothing."""
    format: str
    device: str
    capability: str | None
    """Of the GPU, as ``sm90``; None without one."""
    is_small: bool
    batches: tuple[int, ...]

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(filter(None, (self.variant or self.runtime, self.format)))

    @property
    def plan(self) -> Plan:
        """How large."""
        return SMALL if self.is_small else RACE

    @property
    def cases(self) -> list[tuple[str, str, int, int]]:
        """Everything that is timed: a model, decode or prefill, tokens, batch."""
        lengths = [*(("decode", context) for context in self.plan.contexts), ("prefill", self.plan.prompt)]
        return [(name, what, tokens, batch) for what, tokens in lengths for batch in self.batches for name in MODELS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt, and what is written behind it whatever the model would say."""

    prompt: list[int]
    forced: list[int]


def prompt_of(plan: Plan, tokens: int) -> list[int]:
    """The prompt that all contestants read."""
    return np.random.default_rng(tokens).integers(plan.vocab, size=tokens).tolist()


def texts_of(plan: Plan) -> list[Text]:
    """What logits are compared after: a prompt as long as the timed one, and a few tokens behind a shorter one."""
    short = prompt_of(plan, plan.contexts[0])
    return [
        Text(prompt=prompt_of(plan, plan.prompt), forced=[]),
        Text(prompt=short, forced=short[:_FORCED_TOKENS]),
    ]


class Player(ABC):
    """An opened contestant: it has a parent and a child ready, and times what it is told to."""

    def __init__(self, entry: Entry, bytes_per_value: int) -> None:
        self.entry, self.bytes_per_value = entry, bytes_per_value
        models = {"parent": parent_of(entry.plan), "child": child_of(entry.plan)}
        self.models = models
        self.weights = {name: random_weights(model, seed=1) for name, model in models.items()}
        self.stored = {
            name: stored_for_tensorrt(model, parse_format(entry.format)).model for name, model in models.items()
        }
        """With the formats that weights are kept in."""

    @abstractmethod
    def logits(self, name: str) -> np.ndarray:
        """After every prompt and every forced token of `texts_of`, logits_SV."""

    @abstractmethod
    def decode_s(self, name: str, context: int, batch: int) -> float:
        """Seconds a token behind a prompt, the token on the host."""

    @abstractmethod
    def prefill_s(self, name: str, tokens: int, batch: int) -> float:
        """Seconds until the first token behind a prompt is on the host."""

    def time_s(self, name: str, what: str, tokens: int, batch: int) -> float:
        """Either."""
        return (self.decode_s if what == "decode" else self.prefill_s)(name, tokens, batch)

    def least_bytes(self, name: str, context: int, batch: int) -> int:
        """What a step reads at least, halfway through what is timed: weights as stored, and the caches."""
        halfway = context + WARM_TOKENS + self.entry.plan.new_tokens // 2
        return bytes_per_token(self.stored[name], batch * halfway, self.bytes_per_value)
