"""A problem as arrays: what relaxation and enumeration work on.

Rows are scaled so that the sum over groups of what each can spread becomes 1, which keeps prices comparable.

Shapes: C choices, G groups, R rows.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """One choice in every group, the least sum of scores, every row's sum of costs within its room."""

    scores_C: np.ndarray
    costs_CR: np.ndarray
    room_R: np.ndarray
    """What the choices may cost in all."""
    group_C: np.ndarray
    """Each choice's group; choices of a group stand together, in the order of groups."""

    @property
    def num_groups(self) -> int:
        """Groups to choose from."""
        return int(self.group_C[-1]) + 1

    @property
    def starts_G(self) -> np.ndarray:
        """Each group's first choice."""
        return np.searchsorted(self.group_C, np.arange(self.num_groups))

    def least_R(self) -> np.ndarray:
        """The least that each row can come to, the others left aside."""
        return np.minimum.reduceat(self.costs_CR, self.starts_G, axis=0).sum(axis=0)

    def with_row(self, costs_C: np.ndarray, room: float) -> "Arrays":
        """The problem with one more row."""
        return replace(
            self, costs_CR=np.column_stack([self.costs_CR, costs_C]), room_R=np.append(self.room_R, float(room))
        )

    def with_rows(self, kept: np.ndarray | list[int]) -> "Arrays":
        """The problem with some of its rows only."""
        return replace(self, costs_CR=self.costs_CR[:, kept], room_R=self.room_R[kept])

    def scaled(self) -> tuple["Arrays", np.ndarray]:
        """The problem with its rows scaled, and the factors."""
        starts = self.starts_G
        spread_GR = np.maximum.reduceat(self.costs_CR, starts, axis=0) - np.minimum.reduceat(
            self.costs_CR, starts, axis=0
        )
        spread_R = spread_GR.sum(axis=0)
        factor_R = 1.0 / np.where(spread_R > 0, spread_R, 1.0)
        return replace(self, costs_CR=self.costs_CR * factor_R, room_R=self.room_R * factor_R), factor_R
