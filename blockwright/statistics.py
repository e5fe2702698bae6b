"""Intervals for means of few, uneven values."""

from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % bootstrap interval, over so many independent values."""

    value: float
    low: float
    high: float
    num_values: int


def estimate_mean(values: np.ndarray) -> Estimate:
    """The mean of independent values and its percentile bootstrap interval (Efron 1979), from a fixed seed.

    Args:
        values: one number per independent unit (a text window, not a token), at least one.
    """
    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(values), (NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    mean = float(values.mean())
    return Estimate(value=mean, low=min(float(low), mean), high=max(float(high), mean), num_values=len(values))


def estimate_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """The ratio of two paired means and its percentile bootstrap interval."""
    numerators = np.asarray(numerators, dtype=np.float64)
    denominators = np.asarray(denominators, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(numerators), (NUM_RESAMPLES, len(numerators)))
    ratios = numerators[picks].mean(axis=1) / denominators[picks].mean(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    ratio = float(numerators.mean() / denominators.mean())
    return Estimate(value=ratio, low=min(float(low), ratio), high=max(float(high), ratio), num_values=len(numerators))
