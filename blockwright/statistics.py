"""Intervals for means of few, uneven values."""

from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
LEAST_VALUES = 2
"""Of fewer no interval can be told."""
_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % bootstrap interval, over so many independent units."""

    value: float
    low: float
    high: float
    num_values: int


def estimate_mean(values: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """The mean and its percentile bootstrap interval (Efron 1979), from a fixed seed.

    Args:
        values: one number per text window (not per token), at least two.
        groups: which values belong together, such as windows of one document: whole groups are drawn, for their
            values are not independent of each other (cluster bootstrap). None where all values are independent, and
            ignored where there is but one group.
    """
    return estimate_ratio(values, np.ones(len(values)), groups)


def estimate_ratio(numerators: np.ndarray, denominators: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """The ratio of two paired means and its percentile bootstrap interval; arguments as in `estimate_mean`."""
    assert len(numerators) >= LEAST_VALUES
    units = np.arange(len(numerators)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if units.max() == 0:
        units = np.arange(len(numerators))
    above, below = (np.bincount(units, np.asarray(each, dtype=np.float64)) for each in (numerators, denominators))
    generator = np.random.default_rng(0)
    ratios: list[np.ndarray] = []
    for _ in range(NUM_RESAMPLES // _RESAMPLES_AT_ONCE):
        picks = generator.integers(0, len(above), (_RESAMPLES_AT_ONCE, len(above)))
        ratios.append(above[picks].sum(axis=1) / below[picks].sum(axis=1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    ratio = float(above.sum() / below.sum())
    return Estimate(value=ratio, low=min(float(low), ratio), high=max(float(high), ratio), num_values=len(above))
