"""Ways to take decisions, some of them still open.

The relaxation without the limits of the decisions still open bounds every way to take those.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.search.arrays import Arrays
from blockwright.search.problem import Limit, holds
from blockwright.search.relaxation import Relaxation, priced_bound, relax

_UNREACHABLE = 1e-9
"""Scaled room below the least from which on a row alone shuts everything out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The first decisions taken, the others left open and their limits with them."""

    bound: float
    """No choice within the limits that hold loses less; pairs left aside."""
    decided: dict[str, str]
    relaxation: Relaxation | None
    """Of the rows that hold; None where it was not solved yet."""

    @classmethod
    def untaken(cls, arrays: Arrays) -> "Way":
        """No decision taken."""
        return cls(bound=priced_bound(arrays.with_rows([]), np.zeros(0)), decided={}, relaxation=None)

    def taking(self, name: str, alternatives: Sequence[str]) -> "list[Way]":
        """One more decision taken, in every way."""
        return [Way(bound=self.bound, decided=self.decided | {name: one}, relaxation=None) for one in alternatives]

    def held(self, limits: Sequence[Limit], arrays: Arrays) -> Arrays:
        """The rows that hold and exclude something; all of those that come after the limits'."""
        kept = [i for i, limit in enumerate(limits) if holds(limit, self.decided) and arrays.room_R[i] < np.inf]
        return arrays.with_rows([*kept, *range(len(limits), len(arrays.room_R))])

    def relaxed(self, limits: Sequence[Limit], arrays: Arrays, start_R: np.ndarray | None) -> "Way | None":
        """The way with its relaxation, from prices of a similar problem; None where that has no solution."""
        held = self.held(limits, arrays)
        if (held.least_R() > held.room_R + _UNREACHABLE).any():
            return None
        relaxation = relax(held, start_R)
        if relaxation is None:
            return None
        return replace(self, relaxation=relaxation, bound=max(self.bound, relaxation.bound))

    def __lt__(self, other: "Way") -> bool:
        """The best bound first; of equal ones, what is nearest to a choice."""
        return self._order < other._order

    @property
    def _order(self) -> tuple[float, int, bool]:
        return self.bound, -len(self.decided), self.relaxation is None
