"""Children that were measured beside the parent, as whole engines: what a search chose, held against the machine."""

import math
from dataclasses import dataclass

from blockwright.cost import Load, Quantity
from blockwright.spec import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A time as a share of the parent's, both taken in turn in the same processes."""

    median: float
    """Over the processes."""
    low: float
    """Of the median's interval."""
    high: float
    num_processes: int

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.median <= self.high < math.inf or self.num_processes < 1:
            raise ValueError("0 < low <= median <= high, all of them finite, of at least one process")


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedChild:
    """A child in ONNX Runtime with random weights, beside the parent, at one load."""

    child: Model
    parent_format: str
    """What the parent beside it was stored in."""
    load: Load
    time_per_token: Share
    time_to_first_token: Share

    @property
    def shares(self) -> dict[Quantity, Share]:
        """By the quantity that each is of."""
        return {"time_per_token": self.time_per_token, "time_to_first_token": self.time_to_first_token}
