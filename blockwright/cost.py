"""What something costs, at a load, and how well that is known."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Origin = Literal["measured", "interpolated", "transferred", "modelled"]
"""How a cost is known, the best first. A sum is known as badly as its worst part."""

ORIGINS: tuple[Origin, ...] = ("measured", "interpolated", "transferred", "modelled")

Quantity = Literal[
    "time_per_token",
    "time_to_first_token",
    "request_latency",
    "throughput",
    "energy",
    "memory",
    "disk",
    "parameters",
]
"""What a budget may bound.

time_per_token       writing one token of every sequence of a batch
time_to_first_token  reading the prompts of a batch
request_latency      a whole batch: time to first token, then (new tokens − 1) × time per token
throughput           new tokens of a batch by its request_latency; the only one of which more is better
energy               what the device draws during a request_latency, by the sequences of the batch
memory               weights, caches and what the runtime takes
disk                 all weights as they are stored
parameters           a count
"""

UNIT_OF: dict[Quantity, str] = {
    "time_per_token": "s",
    "time_to_first_token": "s",
    "request_latency": "s",
    "throughput": "tokens/s",
    "energy": "J",
    "memory": "bytes",
    "disk": "bytes",
    "parameters": "parameters",
}

MEASURED_QUANTITIES: tuple[Quantity, ...] = ("time_per_token", "time_to_first_token", "memory", "parameters")
"""What `measure` measures of finished engines; the others follow from these or are counted."""


MOST_SEQUENCES, MOST_TOKENS = 2**31, 2**24
"""Of a load: more than any device holds and any model reads; costs of a prompt are summed chunk by chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A workload: so many sequences at once, each with a prompt to read and tokens to write."""

    batch: int
    prompt_tokens: int
    new_tokens: int

    def __post_init__(self) -> None:
        if min(self.batch, self.prompt_tokens, self.new_tokens) < 1:
            raise ValueError("a batch, a prompt and new tokens of at least 1")
        if self.batch > MOST_SEQUENCES or self.total_tokens > MOST_TOKENS:
            raise ValueError(f"a batch of at most {MOST_SEQUENCES:,} and at most {MOST_TOKENS:,} tokens of a sequence")

    @property
    def total_tokens(self) -> int:
        """Tokens of one sequence when it is finished."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A quantity in its base unit, with the interval it is believed to lie in and its origin.

    What the interval is depends on the origin: of a measurement 90 % of the median; of a model's prediction the largest
    error that it was seen to make on the profile's held-out measurements, and no less than what nine in ten children
    were off that it was tried on.
    """

    value: float
    low: float
    high: float
    origin: Origin

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"low <= value <= high; got {self.low}, {self.value}, {self.high}")


def exact(value: float) -> Cost:
    """A cost known by counting."""
    return Cost(value=value, low=value, high=value, origin="measured")


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs. Half-widths add up too, for errors of one device go together; the origin is the worst one's."""
    parts = list(costs)
    rank = max((ORIGINS.index(part.origin) for part in parts), default=0)
    return Cost(
        value=sum(part.value for part in parts),
        low=sum(part.low for part in parts),
        high=sum(part.high for part in parts),
        origin=ORIGINS[rank],
    )


def product(first: Cost, second: Cost) -> Cost:
    """One cost times another. The interval holds every product of the two intervals; the origin is the worst one's."""
    corners = [a * b for a in (first.low, first.high) for b in (second.low, second.high)]
    value = first.value * second.value
    return Cost(
        value=value,
        low=min(value, *corners),  # rounding may put the value beyond a corner by a digit
        high=max(value, *corners),
        origin=ORIGINS[max(ORIGINS.index(cost.origin) for cost in (first, second))],
    )
