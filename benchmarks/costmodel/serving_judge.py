"""How well predictions of whole models hold, what intervals they need, and how others would predict the same rows."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.datasheet import roofline_s
from blockwright.profiler.operators import Operator

Rows = np.ndarray
Records = list[dict]


def record(table: str, setting: str, quantity: str, method: str, found: np.ndarray, truth: np.ndarray) -> dict:
    """Relative errors of one method on some rows."""
    error = found / truth - 1
    size = np.abs(error)
    return {
        "table": table,
        "setting": setting,
        "quantity": quantity,
        "method": method,
        "n": len(error),
        "mean": float(size.mean()),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
        "within_10": float((size <= 0.1).mean()),
        "within_25": float((size <= 0.25).mean()),
        "bias": float(error.mean()),
    }


def bounds(log_ratios: np.ndarray, share: float = 0.9) -> tuple[float, float]:
    """What holds a share of held-out rows of new groups: the conformal quantiles, each tail half of the rest."""
    ranked, count = np.sort(log_ratios), len(log_ratios)
    cut = math.floor((1 - share) / 2 * (count + 1)) - 1
    return float(ranked[max(cut, 0)]), float(ranked[min(count - 1 - cut, count - 1)] if cut >= 0 else ranked[-1])


def left_out(groups: np.ndarray, predict: Callable[[Rows], np.ndarray]) -> np.ndarray:
    """Each group predicted from the others."""
    found = np.empty(len(groups))
    for group in sorted(set(groups)):
        found[groups == group] = predict(np.flatnonzero(groups != group))[groups == group]
    return found


def covered(groups: np.ndarray, predicted: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """How often the bounds of the other groups hold a group, and how wide they are: the median of high / low."""
    ratios, held, widths = np.log(measured / predicted), [], []
    for group in sorted(set(groups)):
        low, high = bounds(ratios[groups != group])
        inside = ratios[groups == group]
        held += list((low <= inside) & (inside <= high))
        widths += [math.exp(high - low)] * len(inside)
    return float(np.mean(held)), float(np.median(widths))


def floors(counts: Counter[Operator], of: Ceilings) -> tuple[float, float]:
    """The roofline of a step, and bandwidth x 0.8 with 3 us an operator (aiconfigurator's two constants)."""
    operators, times = list(counts), np.array(list(counts.values()), dtype=float)
    slower = replace(of, read_bytes_per_s=replace(of.read_bytes_per_s, value=0.8 * of.read_bytes_per_s.value, low=1.0))
    two = roofline_s(operators, slower) + 3e-6
    return float(roofline_s(operators, of) @ times), float(two @ times)


def nearest(groups: np.ndarray, features: np.ndarray, roofline: np.ndarray, measured_s: np.ndarray) -> np.ndarray:
    """The roofline times what the nearest row of another group was slower than its own."""
    found = np.empty(len(groups))
    scaled = np.log(features)
    for row in range(len(groups)):
        others = np.flatnonzero(groups != groups[row])
        near = others[np.abs(scaled[others] - scaled[row]).sum(axis=1).argmin()]
        found[row] = roofline[row] * measured_s[near] / roofline[near]
    return found
