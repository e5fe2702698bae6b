"""What is learnt of one kind of operator on one device: its law, its trees and the errors that they make.

Left out are rows of all shapes, loads of all shapes, whole shapes, and the edge of what was measured, each on its own,
for the cases that `utilisation` tells apart. Of a timed shape, errors at rows and at whole loads together say how wide
an interval is, by how far the nearest measurement of the shape and of any shape was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial import KDTree

from blockwright.profiler.boosted import Floats, Growth, grow
from blockwright.profiler.conformal import HeldOut
from blockwright.profiler.held_out import Bag, Neighbours, fit_bag, folds_of
from blockwright.profiler.operator_features import (
    Peaks,
    bytes_and_flop,
    features,
    law_terms,
    load_of,
    shape_of,
)
from blockwright.profiler.operators import Matmul, Operator

Flags = NDArray[np.bool_]

_SAME = 1e4
"""A scaling so steep that 4096 rows and 4097 are far from each other: the next tile begins between them."""

_LEAST_HALF_WIDTH = math.log(1.3)
"""Where fewer errors are known than an interval needs: operators of one device differ in utilisation by that much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Law:
    """Factors of the law's terms."""

    peaks: Peaks
    factors: Floats

    def logs(self, operators: Sequence[Operator]) -> Floats:
        """Logarithms of seconds."""
        seconds = law_terms(operators, self.peaks) @ self.factors
        return np.log(np.maximum(seconds, 0.5 * self.peaks.launch_s))

    def columns(self, operators: Sequence[Operator]) -> Floats:
        """For trees."""
        return np.column_stack([features(operators, self.peaks), self.logs(operators)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where a kind was measured: the loads of each shape, as logarithms."""

    loads: dict[tuple[int, ...], Floats]
    all_loads: Floats
    shapes: Floats
    least: Floats
    most: Floats

    def distances(self, operators: Sequence[Operator]) -> Floats:
        """Octaves to the nearest load of the same shape, or nearest shape where it was not timed; and to any load."""
        found = np.zeros(len(operators))
        unknown = []
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, operator in enumerate(operators):
            by_shape.setdefault(shape_of(operator), []).append(index)
        loads = _logs([load_of(operator) for operator in operators])
        for shape, indices in by_shape.items():
            if shape in self.loads:
                found[indices] = KDTree(self.loads[shape]).query(loads[indices])[0]
            else:
                unknown += indices
        if unknown:
            found[unknown] = KDTree(self.shapes).query(_logs([shape_of(operators[i]) for i in unknown]))[0]
        return np.column_stack([found, KDTree(self.all_loads).query(loads)[0]])

    def is_known_shape(self, operators: Sequence[Operator]) -> Flags:
        return np.array([shape_of(operator) in self.loads for operator in operators], bool)

    def octaves_beyond(self, operators: Sequence[Operator]) -> Floats:
        """How far outside of what was measured, along the axis where that is most."""
        at = _positions(operators)
        return np.maximum(np.maximum(self.least - at, at - self.most), 0).max(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindTimes:
    """All that is known of one kind of operator; `fit_kind` makes it."""

    law: _Law
    places: _Places
    other_loads: Bag
    other_shapes: Bag
    load_errors: HeldOut
    shape_errors: HeldOut
    edge_errors: HeldOut

    def costs(self, operators: Sequence[Operator]) -> tuple[Floats, Floats, Floats, Flags]:
        """Seconds, the ends of their intervals, and which lie beyond the measured range."""
        law, columns, at = self.law.logs(operators), self.law.columns(operators), _positions(operators)
        hard = _hardness(operators, self.law, self.places)
        octaves = self.places.octaves_beyond(operators)
        is_beyond, is_known = octaves > 1e-9, self.places.is_known_shape(operators)
        left, below, above = (np.zeros(len(operators)) for _ in range(3))
        for bag, held_out, case in (
            (self.other_loads, self.load_errors, is_known),
            (self.other_shapes, self.shape_errors, ~is_known),
        ):
            if case.any():
                left[case] = bag.predict(columns[case], at[case])
            for errors, asked in ((held_out, case & ~is_beyond), (self.edge_errors, case & is_beyond)):
                if asked.any():
                    below[asked], above[asked] = errors.interval(hard[asked], least_half_width=_LEAST_HALF_WIDTH)
        further = np.maximum(octaves, 1)  # held out was what lies about an octave beyond the rest
        values = law + left
        return np.exp(values), np.exp(values + below * further), np.exp(values + above * further), is_beyond


def fit_kind(peaks: Peaks, operators: Sequence[Operator], seconds: Floats, growth: Growth, seed: int) -> KindTimes:
    """Learns distinct operators of one kind from their seconds."""
    law = _law(peaks, operators, seconds)
    columns, targets, at = law.columns(operators), np.log(seconds) - law.logs(operators), _positions(operators)
    num_axes = len(load_of(operators[0]))
    shape, load = (
        np.unique(axes, axis=0, return_inverse=True)[1].ravel() for axes in (at[:, num_axes:], at[:, :num_axes])
    )
    row = np.arange(len(operators))
    quick = replace(growth, num_trees=growth.num_trees // 2, rate=min(0.3, 1.5 * growth.rate))
    other_load, other_shape = _neighbours(operators[0], num_axes, at.shape[1] - num_axes)

    def fitted(groups: NDArray[np.int64], neighbours: Neighbours, growth: Growth) -> tuple[Bag, HeldOut]:
        folds = folds_of(groups, seed)
        bag, errors = fit_bag(columns, targets, at, folds, neighbours, growth)
        return bag, HeldOut(coordinates=_hardness_left_out(operators, law, folds), errors=errors)

    other_loads, row_errors = fitted(row, other_load, growth)
    _, load_errors = fitted(load, other_load, quick)
    other_shapes, shape_errors = fitted(shape, other_shape, growth)
    edge = ((at == at.min(axis=0)) | (at == at.max(axis=0)))[:, np.ptp(at, axis=0) > 0].any(axis=1)
    return KindTimes(
        law=law,
        places=_places(operators),
        other_loads=other_loads,
        other_shapes=other_shapes,
        load_errors=row_errors.joined(load_errors),
        shape_errors=shape_errors,
        edge_errors=_edge_errors(law, operators, seconds, edge, quick),
    )


def _neighbours(kind: Operator, num_loads: int, num_shapes: int) -> tuple[Neighbours, Neighbours]:
    """Whose errors resemble those at other loads of a timed shape, and those of another shape; chosen on an H100.

    Of attention, loads and shapes nearby; products bend with rows from one step to the next, and nothing nearby tells.
    Other shapes resemble those at the same load: shapes nearby, and those that share a width and with it the tiles.
    """
    nearby = np.r_[np.full(num_loads, 0.3), np.ones(num_shapes)]
    same_load = [np.r_[np.full(num_loads, _SAME), np.ones(num_shapes)]]
    if isinstance(kind, Matmul):
        for axis in range(num_shapes):
            same_load.append(np.r_[np.full(num_loads, _SAME), np.full(num_shapes, 0.33)])
            same_load[-1][num_loads + axis] = 8.0
        return Neighbours(share=0.0), Neighbours(share=1.0, scalings=tuple(same_load))
    return Neighbours(share=0.5, scalings=(nearby,)), Neighbours(share=0.5, scalings=tuple(same_load))


def _edge_errors(law: _Law, operators: Sequence[Operator], seconds: Floats, edge: Flags, growth: Growth) -> HeldOut:
    """Errors at the edge of what was measured, of a law and trees that were fitted to the rest."""
    if edge.all() or not edge.any():
        return HeldOut(coordinates=np.zeros((0, 4)), errors=np.zeros(0))
    rest, tested = (list(compress(operators, side)) for side in (~edge, edge))
    inner = _law(law.peaks, rest, seconds[~edge])
    trees = replace(growth, num_trees=min(growth.num_trees, 15 + len(rest) // 15))
    forest = grow(inner.columns(rest), np.log(seconds[~edge]) - inner.logs(rest), trees)
    errors = np.log(seconds[edge]) - inner.logs(tested) - forest.predict(inner.columns(tested))
    return HeldOut(coordinates=_hardness(tested, inner, _places(rest)), errors=errors)


def _law(peaks: Peaks, operators: Sequence[Operator], seconds: Floats) -> _Law:
    terms = law_terms(operators, peaks)
    factors, _ = nnls(terms / seconds[:, None], np.ones(len(seconds)))
    for _ in range(6):  # towards least relative deviations
        errors = np.abs(np.log(np.maximum(terms @ factors, 1e-12) / seconds)) + 0.02
        weights = 1 / (seconds * np.sqrt(errors))
        factors, _ = nnls(terms * weights[:, None], seconds * weights)
    return _Law(peaks=peaks, factors=factors)


def _places(operators: Sequence[Operator]) -> _Places:
    loads: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for operator in operators:
        loads.setdefault(shape_of(operator), []).append(load_of(operator))
    at = _positions(operators)
    return _Places(
        loads={shape: _logs(found) for shape, found in loads.items()},
        all_loads=_logs(list({load for found in loads.values() for load in found})),
        shapes=_logs(list(loads)),
        least=at.min(axis=0),
        most=at.max(axis=0),
    )


def _hardness(operators: Sequence[Operator], law: _Law, places: _Places) -> Floats:
    """Coordinates along which errors differ: how far measurements are, the time, and what bounds it."""
    num_bytes, flop = bytes_and_flop(operators)
    own, any_load = places.distances(operators).T
    return np.column_stack([own, 2 * any_load, law.logs(operators) / np.log(2), 0.5 * np.log2(flop / num_bytes)])


def _hardness_left_out(operators: Sequence[Operator], law: _Law, folds: NDArray[np.int64]) -> Floats:
    """The same for each operator as if its fold had not been measured."""
    found = np.zeros((len(operators), 4))
    for fold in range(folds.max() + 1):
        is_tested = folds == fold
        tested = list(compress(operators, is_tested))
        rest = list(compress(operators, ~is_tested)) or tested
        found[is_tested] = _hardness(tested, law, _places(rest))
    return found


def _positions(operators: Sequence[Operator]) -> Floats:
    return _logs([(*load_of(operator), *shape_of(operator)) for operator in operators])


def _logs(rows: Sequence[tuple[int, ...]]) -> Floats:
    return np.log2(np.maximum(np.array(rows, float), 0.5))  # a flag is 0 or 1
