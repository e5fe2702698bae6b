"""What errors say about the errors nearby: local kriging, for what trees have left over.

With covariance C between known points and c to the asked one, the weights of the known errors are (C + νI)⁻¹ c
(Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 2.2). C is a mean of exponentials,
each with its own scaling of the axes: a scaling that is steep along all axes but one ties points together that differ
in that one only. Only the nearest points by each scaling are solved for.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from blockwright.profiler.boosted import Floats

_NEIGHBOURS = 36
"""Of all scalings together."""

_NUGGET = 1.0
"""ν, the noise of one error as a share of the variance that neighbours have in common; chosen on an H100."""

_AT_ONCE = 500
"""Asked points, so that their covariances fit into memory."""


def krige(known: Floats, errors: Floats, asked: Floats, scalings: Sequence[Floats]) -> Floats:
    """The error to expect at each asked point, zero far from all known ones.

    Args:
        known: points × axes.
        errors: one for each known point.
        asked: points × axes.
        scalings: one factor for each axis, in each of them.
    """
    if not len(known) or not len(asked):
        return np.zeros(len(asked))
    count = min(len(known), _NEIGHBOURS // len(scalings))
    found = [KDTree(known * scale).query(asked * scale, k=count)[1].reshape(len(asked), -1) for scale in scalings]
    index = np.sort(np.concatenate(found, axis=1), axis=1)
    is_twice = np.zeros(index.shape, bool)
    is_twice[:, 1:] = index[:, 1:] == index[:, :-1]
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(asked), _AT_ONCE)]
    return np.concatenate(
        [_solved(known[index[part]], errors[index[part]], is_twice[part], asked[part], scalings) for part in parts]
    )


def _solved(
    near: Floats, errors: Floats, is_twice: NDArray[np.bool_], asked: Floats, scalings: Sequence[Floats]
) -> Floats:
    """For asked points with the neighbours of each; a neighbour that is there twice counts once."""
    steps = near - asked[:, None]
    between, to_asked = np.zeros((*near.shape[:2], near.shape[1])), np.zeros(near.shape[:2])
    for scale in scalings:
        scaled = steps * scale
        squares = (scaled**2).sum(axis=2)
        to_asked += np.exp(-np.sqrt(squares)) / len(scalings)
        apart = squares[:, :, None] + squares[:, None] - 2 * scaled @ scaled.transpose(0, 2, 1)
        between += np.exp(-np.sqrt(np.maximum(apart, 0))) / len(scalings)
    diagonal = np.arange(near.shape[1])
    between[:, diagonal, diagonal] += np.where(is_twice, 1e9, _NUGGET)
    weights = np.linalg.solve(between, to_asked[:, :, None])[:, :, 0]
    return (weights * errors).sum(axis=1)
