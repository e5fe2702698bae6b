"""What a contestant of race.py is: who plays, with which models and texts, and what it is asked for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from raced_models import FULL, SMALL, WARM_TOKENS, Plan, bytes_per_token, child_of, parent_of

from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import parse_format

RACE = replace(FULL, contexts=(128, 2048), rounds=7)
TRIED = replace(SMALL, contexts=(16, 600))
"""The tiny sizes: of the contexts, too, one is read in a chunk and one in several."""
MODELS = ("parent", "child")
Load = tuple[str, int, int]
"""Decode or prefill, tokens, batch."""
Case = tuple[str, str, int, int]
"""A model, and the load that it is timed at."""
_FORCED_TOKENS = WARM_TOKENS
"""For which the timed texts have room."""


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
        return TRIED if self.is_small else RACE

    @property
    def loads(self) -> list[Load]:
        """What each model is timed at."""
        lengths = [*(("decode", context) for context in self.plan.contexts), ("prefill", self.plan.prompt)]
        return [(what, tokens, batch) for what, tokens in lengths for batch in self.batches]

    @property
    def cases(self) -> list[Case]:
        """Everything that is timed."""
        return [(name, *load) for load in self.loads for name in MODELS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Prompts of a batch, all as long, and the tokens written behind them whatever the model would say."""

    prompts: list[list[int]]
    forced: list[list[int]]
    """Step by step, one for each prompt."""


def prompts_of(plan: Plan, tokens: int, batch: int) -> list[list[int]]:
    """The prompts that all contestants read, each another one."""
    return [np.random.default_rng((tokens, row)).integers(plan.vocab, size=tokens).tolist() for row in range(batch)]


def text_of(plan: Plan, load: Load) -> Text:
    """What logits are compared after where this is timed: prompts, and a few tokens behind contexts."""
    what, tokens, batch = load
    prompts = prompts_of(plan, tokens, batch)
    steps = range(_FORCED_TOKENS if what == "decode" else 0)
    return Text(prompts=prompts, forced=[[prompt[step] for prompt in prompts] for step in steps])


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
    def logits(self, name: str, text: Text) -> np.ndarray:
        """After the prompts and after each forced token, logits_SBV."""

    @abstractmethod
    def decode_s(self, name: str, context: int, batch: int) -> float:
        """Seconds a token behind prompts, the token on the host."""

    @abstractmethod
    def prefill_s(self, name: str, tokens: int, batch: int) -> float:
        """Seconds until the first tokens behind prompts are on the host.

        They are there as lists when the clock starts, and what can be used again was made before: caches of a fixed
        size, graphs, buffers.
        """

    def time_s(self, name: str, what: str, tokens: int, batch: int) -> float:
        """Either."""
        return (self.decode_s if what == "decode" else self.prefill_s)(name, tokens, batch)

    def least_bytes(self, name: str, context: int, batch: int) -> int:
        """What a step reads at least, halfway through what is timed: weights as stored, and the caches."""
        halfway = context + WARM_TOKENS + self.entry.plan.new_tokens // 2
        return bytes_per_token(self.stored[name], batch * halfway, self.bytes_per_value)
