"""Boosted regression trees on histograms, in numpy: what bends with tiles and waves has steps, and trees have them too.

Each round grows a tree of fixed depth on residuals, clipped as in Huber's loss, for single measurements lie. A split
maximises Σ G²/(n + λ) over both sides, with G the sum of residuals and n the rows of a side (Friedman, "Greedy function
approximation", 2001, with the histograms of LightGBM). Several forests of different seeds are averaged.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NUM_BINS = 48

_COUNT = 2.0**24
"""Added to a residual in units of the clip, so that one histogram holds their number and their sum: fewer rows than
2²³ sum up to less than half of it, and 29 of a double's 53 bits remain for the residuals."""

_LEAST_COLUMNS = 6
"""A tree of fewer would not see what columns do together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How trees grow. Chosen on the products and attention of an H100, and left alone for all other devices."""

    num_forests: int = 1
    num_trees: int = 120
    depth: int = 8
    rate: float = 0.15
    share_of_columns: float = 0.5
    share_of_rows: float = 0.5
    most_rows: int = 4000
    """For one tree: more take longer and teach it little."""
    least_rows: int = 4
    """In a leaf."""
    shrinkage: float = 1.0
    """λ."""
    clip_quantile: float = 0.9
    """Residuals beyond this quantile of their size count as if they were at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A column and a bin for each node of each level, and what the leaves add."""

    columns: tuple[Ints, ...]
    bins: tuple[Ints, ...]
    leaves: Floats

    def leaf_of(self, binned: Ints) -> Ints:
        """The leaf that each row falls into."""
        node = np.zeros(len(binned), np.int64)
        every = np.arange(len(binned))
        for columns, bins in zip(self.columns, self.bins, strict=True):
            node = 2 * node + (binned[every, columns[node]] > bins[node])
        return node


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Trees over the same bins; `start` is what they begin from."""

    edges: tuple[Floats, ...]
    start: float
    trees: tuple[Tree, ...]
    num_forests: int

    def predict(self, features: Floats) -> Floats:
        """A value for each row of features."""
        binned = _binned(features, self.edges)
        added = np.zeros(len(features))
        for tree in self.trees:
            added += tree.leaves[tree.leaf_of(binned)]
        return self.start + added / self.num_forests


def grow(features: Floats, targets: Floats, growth: Growth, *, seed: int = 0) -> Forest:
    """Trees that predict targets from features.

    Args:
        features: rows × columns, finite.
        targets: one for each row.
        growth: how.
        seed: of the draws of rows and columns.

    Returns:
        The mean of `growth.num_forests` forests; a constant where there are too few rows to split.
    """
    edges = tuple(_edges(column) for column in features.T)
    start = float(np.median(targets))
    if len(targets) < 2 * growth.least_rows:
        return Forest(edges=edges, start=start, trees=(), num_forests=1)
    binned = _binned(features, edges)
    trees: list[Tree] = []
    for forest in range(growth.num_forests):
        rng = np.random.default_rng([seed, forest])
        residuals = targets - start
        for _ in range(growth.num_trees):
            tree = _tree(binned, residuals, growth, rng)
            residuals = residuals - tree.leaves[tree.leaf_of(binned)]
            trees.append(tree)
    return Forest(edges=edges, start=start, trees=tuple(trees), num_forests=growth.num_forests)


def _tree(binned: Ints, residuals: Floats, growth: Growth, rng: np.random.Generator) -> Tree:
    """One tree on a draw of the rows and columns."""
    num_rows, num_columns = binned.shape
    limit = max(float(np.quantile(np.abs(residuals), growth.clip_quantile)), 1e-9)
    drawn = rng.permutation(num_columns)[: max(_LEAST_COLUMNS, round(growth.share_of_columns * num_columns))]
    rows = rng.permutation(num_rows)[: min(growth.most_rows, max(1, round(growth.share_of_rows * num_rows)))]
    gradients = np.clip(residuals[rows], -limit, limit)
    of_rows = binned[rows]
    keys = of_rows[:, drawn] + np.arange(len(drawn)) * _NUM_BINS
    packed = np.repeat(gradients / limit + _COUNT, len(drawn))
    node = np.zeros(len(rows), np.int64)
    levels: list[tuple[Ints, Ints]] = []
    depth = min(growth.depth, 1 + int(np.log2(max(1.0, len(rows) / growth.least_rows))))
    for level in range(depth):
        columns, bins = _best_splits(keys, node, packed, (2**level, len(drawn)), growth)
        levels.append((drawn[columns], bins))
        node = 2 * node + (of_rows[np.arange(len(rows)), drawn[columns][node]] > bins[node])
    counts = np.bincount(node, minlength=2**depth)
    sums = np.bincount(node, gradients, minlength=2**depth)
    leaves = growth.rate * sums / (counts + growth.shrinkage)
    return Tree(columns=tuple(c for c, _ in levels), bins=tuple(b for _, b in levels), leaves=leaves)


def _best_splits(keys: Ints, node: Ints, packed: Floats, shape: tuple[int, int], growth: Growth) -> tuple[Ints, Ints]:
    """The column and the bin at which each node of a level splits best; the last bin where it should not."""
    num_nodes, num_columns = shape
    width = num_columns * _NUM_BINS
    flat = (keys + (node * width)[:, None]).ravel()
    both = np.bincount(flat, packed, minlength=num_nodes * width).reshape(num_nodes, num_columns, _NUM_BINS).cumsum(2)
    counts = np.rint(both / _COUNT)
    sums = both - _COUNT * counts
    counts_right, sums_right = counts[..., -1:] - counts, sums[..., -1:] - sums
    gains = sums**2 / (counts + growth.shrinkage) + sums_right**2 / (counts_right + growth.shrinkage)
    gains[np.minimum(counts, counts_right) < growth.least_rows] = -1
    flat_gains = gains.reshape(num_nodes, width)
    best = flat_gains.argmax(1)
    splits = flat_gains[np.arange(num_nodes), best] >= 0
    return best // _NUM_BINS, np.where(splits, best % _NUM_BINS, _NUM_BINS)


def _edges(column: Floats) -> Floats:
    """Where a column is cut into at most `_NUM_BINS` bins."""
    values = np.unique(column)
    if len(values) <= _NUM_BINS:
        return (values[1:] + values[:-1]) / 2
    return np.unique(np.quantile(column, np.arange(1, _NUM_BINS) / _NUM_BINS))


def _binned(features: Floats, edges: tuple[Floats, ...]) -> Ints:
    """The bin of each value."""
    columns = zip(edges, features.T, strict=True)
    return np.stack([np.searchsorted(cuts, column) for cuts, column in columns], axis=1).astype(np.int64)
