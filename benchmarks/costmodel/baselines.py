"""Other ways to predict times from the same measured rows; each takes a table, rows to learn from and to predict."""

from collections.abc import Callable

import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import KDTree
from tables import Table

from blockwright.profiler.operator_features import bytes_and_flop, features, load_of, peaks_of, shape_of

Rows = np.ndarray
Predict = Callable[[Table, Rows, Rows], np.ndarray]


def nearest(table: Table, learn: Rows, predict: Rows) -> np.ndarray:
    """The utilisation of the nearest measured operator, sizes in octaves."""
    return _weighted(table, learn, predict, 1)


def inverse_distance(table: Table, learn: Rows, predict: Rows) -> np.ndarray:
    """Utilisation of the four nearest by inverse distance; neighbours of the same load come first."""
    return _weighted(table, learn, predict, 4)


def other_sites(table: Table) -> np.ndarray:
    """Utilisation of the four nearest other shapes at the same row count by inverse distance; nan where there are none.

    This is the reference that the project set out to beat.
    """
    loads = np.array([load_of(each)[0] for each in table.operators])
    shapes = np.log2([shape_of(each) for each in table.operators])
    roofline, times = _roofline(table), np.full(len(loads), np.nan)
    for load in np.unique(loads):
        rows = np.flatnonzero(loads == load)
        if len(rows) > 4:
            # The first is the shape itself.
            distances, index = map(np.asarray, KDTree(shapes[rows]).query(shapes[rows], k=5))
            weights = 1 / distances[:, 1:]
            utilisation = (roofline / table.seconds)[rows][index[:, 1:]]
            times[rows] = roofline[rows] * weights.sum(1) / (weights * utilisation).sum(1)
    return times


def linear(table: Table, learn: Rows, predict: Rows) -> np.ndarray:
    """Between loads of the same shape, linear in logarithms of load and utilisation; nearest where there is none."""
    result = nearest(table, learn, predict)
    loads = np.log2([load_of(each) for each in table.operators])
    utilisation = np.log(_roofline(table) / table.seconds)
    learnt, asked = _by_shape(table, learn), _by_shape(table, predict)
    varying = np.flatnonzero(np.ptp(loads, axis=0) > 0)
    if len(varying) > 1 and np.array_equal(loads[:, 1], loads[:, -1]):
        varying = varying[:2]
    for shape, rows in asked.items():
        own = np.array(learnt.get(shape, []), int)
        at = np.array(rows)
        found = np.full(len(rows), np.nan)
        if len(varying) == 1 and len(own) >= 2:
            order = own[np.argsort(loads[own, varying[0]])]
            found = np.interp(loads[at, varying[0]], loads[order, varying[0]], utilisation[order])
        elif len(varying) == 2 and len(own) >= 4 and np.all(np.ptp(loads[np.ix_(own, varying)], axis=0) > 0):
            surface = LinearNDInterpolator(loads[np.ix_(own, varying)], utilisation[own])
            found = surface(loads[np.ix_(at, varying)])
        known = ~np.isnan(found)
        places = np.searchsorted(predict, at)
        result[places[known]] = _roofline(table)[at[known]] / np.exp(found[known])
    return result


def random_forest(table: Table, learn: Rows, predict: Rows) -> np.ndarray:
    """scikit-learn's, on the same columns as ours and the logarithm of utilisation."""
    from sklearn.ensemble import RandomForestRegressor  # pyright: ignore[reportMissingImports]

    columns = features(table.operators, peaks_of(table.ceilings, table.operators[0]))
    roofline = _roofline(table)
    forest = RandomForestRegressor(n_estimators=30, min_samples_leaf=2, max_features=0.5, random_state=0, n_jobs=1)
    forest.fit(columns[learn], np.log(table.seconds[learn] / roofline[learn]))
    return roofline[predict] * np.exp(forest.predict(columns[predict]))


def roofline_two_constants(table: Table, learn: Rows, predict: Rows) -> np.ndarray:
    """aiconfigurator's own: 80 % of the bandwidth and 3 µs; it learns nothing."""
    del learn
    peaks = peaks_of(table.ceilings, table.operators[0])
    num_bytes, flop = bytes_and_flop(table.operators)
    times = np.maximum(num_bytes / (0.8 * peaks.read_bytes_per_s), flop / peaks.flop_per_s) + 3e-6
    return times[predict]


BASELINES: dict[str, Predict] = {
    "nearest": nearest,
    "linear": linear,
    "inverse distance": inverse_distance,
    "random forest": random_forest,
    "roofline, two constants": roofline_two_constants,
}


def _weighted(table: Table, learn: Rows, predict: Rows, count: int) -> np.ndarray:
    loads = np.log2([load_of(each) for each in table.operators])
    shapes = np.log2(np.maximum([shape_of(each) for each in table.operators], 0.5))
    at = np.hstack([20 * loads if loads.shape[1] == 1 else loads, shapes])
    roofline = _roofline(table)
    distances, index = KDTree(at[learn]).query(at[predict], k=count)
    distances, index = distances.reshape(len(predict), -1), index.reshape(len(predict), -1)
    weights = 1 / np.maximum(distances, 1e-6)
    utilisation = (roofline / table.seconds)[learn][index]
    return roofline[predict] * weights.sum(1) / (weights * utilisation).sum(1)


def _roofline(table: Table) -> np.ndarray:
    peaks = peaks_of(table.ceilings, table.operators[0])
    num_bytes, flop = bytes_and_flop(table.operators)
    return peaks.launch_s + np.maximum(num_bytes / peaks.read_bytes_per_s, flop / peaks.flop_per_s)


def _by_shape(table: Table, rows: Rows) -> dict[tuple[int, ...], list[int]]:
    found: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        found.setdefault(shape_of(table.operators[row]), []).append(int(row))
    return found
