"""Intervals that cover what they say, from the errors that a model made where it had not seen the answer.

Split conformal prediction (Vovk et al., 2005; Lei et al., 2018), made local: the interval at a point holds the middle
90 % of the signed errors at the held-out points that were about as hard, with the correction for few of them. What is
hard is told by coordinates: how far the nearest measurement was, how long the operator takes, where it lies.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from blockwright.profiler.boosted import Floats

COVERAGE = 0.9
"""Of every interval."""

_NEIGHBOURS = 240
"""Errors that decide one interval: 5 % of them are a dozen, so that the ends repeat within a fifth or so."""

_LEAST_ERRORS = 40
"""Fewer do not tell 5 % from nothing; see `least_half_width` for what is said then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Errors at held-out points, in logarithms of time: the measured minus the predicted."""

    coordinates: Floats
    """Points × coordinates; one unit of each is about as far."""
    errors: Floats

    def joined(self, other: "HeldOut") -> "HeldOut":
        """The errors of both."""
        return HeldOut(
            coordinates=np.concatenate([self.coordinates, other.coordinates]),
            errors=np.concatenate([self.errors, other.errors]),
        )

    def interval(self, coordinates: Floats, *, least_half_width: float = 0.0) -> tuple[Floats, Floats]:
        """The ends of the interval at each point, as logarithms to be added to a prediction's.

        Args:
            coordinates: points × coordinates.
            least_half_width: an end is at least so far, where errors are fewer than `_LEAST_ERRORS`.
        """
        count = len(self.errors)
        if count < _LEAST_ERRORS:
            half = max(least_half_width, 1.5 * float(np.max(np.abs(self.errors), initial=0.0)))
            return np.full(len(coordinates), -half), np.full(len(coordinates), half)
        near = min(_NEIGHBOURS, count)
        _, index = KDTree(self.coordinates).query(coordinates, k=near)
        errors = np.sort(self.errors[index], axis=1)
        rank = max(int(np.floor((near + 1) * (1 - COVERAGE) / 2)) - 1, 0)
        return np.minimum(errors[:, rank], 0), np.maximum(errors[:, near - 1 - rank], 0)
