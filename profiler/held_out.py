"""Forests that each left out a part of what was measured, so that one fit tells both times and their errors.

Each forest learns from all folds but one and predicts that one: these errors are honest. They serve twice: errors of
neighbours correct a prediction (see `kriging`), and all of them make the intervals (see `conformal`). Points that were
in no fold get the mean of all forests. How much of what neighbours say is believed is not told by the folds
themselves: the other forests have seen the fold, and their errors beside it are smaller for that.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blockwright.profiler.boosted import Floats, Forest, Growth, grow
from blockwright.profiler.kriging import krige

_FOLDS = (3, 5)
"""Of few rows and of many."""

_MANY_ROWS = 500

_FEWEST_TREES = 15
"""Up to some 300 rows, which must be learnt while somebody waits; beyond, one more for each `_ROWS_PER_TREE`."""

_FEW_ROWS = 200
_ROWS_PER_TREE = 6

_CLIP_QUANTILE = 0.9
"""Errors beyond this quantile of their size count as if they were at it: wild ones say nothing of their neighbours."""


_OF_ONE_FOREST = 1.05
"""So much larger are errors of one forest than those of their mean; measured on an H100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Which errors say something of an asked point's, and how much of it is believed."""

    share: float
    scalings: tuple[Floats, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """Forests, and the errors that they made on what they had not seen."""

    forests: tuple[Forest, ...]
    positions: Floats
    errors: Floats
    neighbours: Neighbours

    def predict(self, columns: Floats, positions: Floats) -> Floats:
        """A value for each row of columns that no forest has seen."""
        trees = np.mean([forest.predict(columns) for forest in self.forests], axis=0)
        if self.neighbours.share == 0:
            return trees
        told = krige(self.positions, self.errors, positions, self.neighbours.scalings)
        return trees + self.neighbours.share * told


def folds_of(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A fold for each row; rows of one group share it."""
    names, group = np.unique(groups, return_inverse=True)
    count = _FOLDS[len(groups) >= _MANY_ROWS]
    return (np.random.default_rng(seed).permutation(len(names)) % count)[group.ravel()]


def fit_bag(
    columns: Floats,
    targets: Floats,
    positions: Floats,
    folds: NDArray[np.int64],
    neighbours: Neighbours,
    growth: Growth,
) -> tuple[Bag, Floats]:
    """Forests for the folds, and the errors that their mean is likely to make on rows that none of them has seen."""
    growth = replace(growth, num_trees=_num_trees(len(targets), growth))
    forests: list[Forest] = []
    errors = np.zeros(len(targets))
    for fold in range(folds.max() + 1):
        rest, tested = folds != fold, folds == fold
        if not rest.any():
            rest = tested  # a single group: nothing can be left out
        forests.append(grow(columns[rest], targets[rest], growth, seed=fold))
        errors[tested] = targets[tested] - forests[-1].predict(columns[tested])
    limit = float(np.quantile(np.abs(errors), _CLIP_QUANTILE))
    clipped = np.clip(errors, -limit, limit)
    bag = Bag(forests=tuple(forests), positions=positions, errors=clipped, neighbours=neighbours)
    return bag, errors / _OF_ONE_FOREST


def _num_trees(num_rows: int, growth: Growth) -> int:
    return min(growth.num_trees, max(_FEWEST_TREES, (num_rows - _FEW_ROWS) // _ROWS_PER_TREE))
