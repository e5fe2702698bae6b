"""What is learnt of one kind of operator on one device: its law, its trees and the errors that they make.

Held out are rows of all shapes, whole shapes, and the edge of what was measured, each on its own, for the three cases
that `utilisation` tells apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial import KDTree

from blockwright.profiler.boosted import Floats, Forest, Growth, grow
from blockwright.profiler.conformal import HeldOut
from blockwright.profiler.operator_features import (
    Peaks,
    bytes_and_flop,
    features,
    law_terms,
    load_of,
    shape_of,
)
from blockwright.profiler.operators import Operator

Flags = NDArray[np.bool_]

_FOLDS = 3
_LEAST_HALF_WIDTH = math.log(1.3)
"""Where fewer errors are known than an interval needs: operators of one device differ in utilisation by that much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """The law's factors and the trees for what it leaves."""

    peaks: Peaks
    factors: Floats
    forest: Forest

    def law_s(self, operators: Sequence[Operator]) -> Floats:
        return np.maximum(law_terms(operators, self.peaks) @ self.factors, 0.5 * self.peaks.launch_s)

    def predict(self, operators: Sequence[Operator]) -> Floats:
        """Logarithms of seconds."""
        law = np.log(self.law_s(operators))
        return law + self.forest.predict(_with_law(operators, self.peaks, law))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where a kind was measured: the loads of each shape, as logarithms."""

    loads: dict[tuple[int, ...], Floats]
    shapes: Floats
    least: Floats
    most: Floats

    def distances(self, operators: Sequence[Operator]) -> Floats:
        """Octaves to the nearest load of the same shape, or to the nearest shape where that one was not timed."""
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
        return found

    def is_known_shape(self, operators: Sequence[Operator]) -> Flags:
        return np.array([shape_of(operator) in self.loads for operator in operators], bool)

    def octaves_beyond(self, operators: Sequence[Operator]) -> Floats:
        """How far outside of what was measured, along the axis where that is most."""
        at = _positions(operators)
        return np.maximum(np.maximum(self.least - at, at - self.most), 0).max(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindTimes:
    """All that is known of one kind of operator; `fit_kind` makes it."""

    curve: _Curve
    places: _Places
    other_loads: HeldOut
    other_shapes: HeldOut
    beyond: HeldOut

    def costs(self, operators: Sequence[Operator]) -> tuple[Floats, Floats, Floats, Flags]:
        """Seconds, the ends of their intervals, and which lie beyond the measured range."""
        values = self.curve.predict(operators)
        at = _hardness(operators, self.curve, self.places)
        octaves = self.places.octaves_beyond(operators)
        is_beyond, is_known = octaves > 1e-9, self.places.is_known_shape(operators)
        below, above = np.zeros(len(operators)), np.zeros(len(operators))
        cases = (
            (self.beyond, is_beyond),
            (self.other_loads, ~is_beyond & is_known),
            (self.other_shapes, ~is_beyond & ~is_known),
        )
        for held_out, case in cases:
            if case.any():
                below[case], above[case] = held_out.interval(at[case], least_half_width=_LEAST_HALF_WIDTH)
        further = np.maximum(octaves, 1)  # held out was what lies about an octave beyond the rest
        return np.exp(values), np.exp(values + below * further), np.exp(values + above * further), is_beyond


def fit_kind(peaks: Peaks, operators: Sequence[Operator], seconds: Floats, growth: Growth, seed: int) -> KindTimes:
    """Learns distinct operators of one kind from their seconds."""
    rng = np.random.default_rng(seed)
    shapes = [shape_of(operator) for operator in operators]
    numbers = {shape: number for number, shape in enumerate(sorted(set(shapes)))}
    of_shape = rng.permutation(len(numbers))[[numbers[shape] for shape in shapes]] % _FOLDS
    of_row = rng.permutation(len(operators)) % _FOLDS
    at = _positions(operators)
    edge = ((at == at.min(axis=0)) | (at == at.max(axis=0)))[:, np.ptp(at, axis=0) > 0].any(axis=1)
    # One smaller forest's errors stand for the full ones': a little larger, so that intervals are no narrower.
    calibration = replace(growth, num_forests=1, num_trees=min(80, growth.num_trees), rate=2 * growth.rate)

    def held_out(folds: NDArray[np.int_], chosen: Sequence[int]) -> HeldOut:
        return _held_out(peaks, operators, seconds, [folds == fold for fold in chosen], calibration)

    return KindTimes(
        curve=_curve(peaks, operators, seconds, growth, seed),
        places=_places(operators),
        other_loads=held_out(of_row, range(_FOLDS)),
        other_shapes=held_out(of_shape, range(_FOLDS)),
        beyond=held_out(edge.astype(np.int_), [1]),
    )


def _held_out(
    peaks: Peaks, operators: Sequence[Operator], seconds: Floats, folds: Sequence[Flags], growth: Growth
) -> HeldOut:
    """Errors on each fold of what was fitted to the rest."""
    coordinates, errors = [np.zeros((0, 3))], [np.zeros(0)]
    for fold in folds:
        rest, tested = ([each for each, is_in in zip(operators, side, strict=True) if is_in] for side in (~fold, fold))
        if rest and tested:
            curve = _curve(peaks, rest, seconds[~fold], growth, 0)
            coordinates.append(_hardness(tested, curve, _places(rest)))
            errors.append(np.log(seconds[fold]) - curve.predict(tested))
    return HeldOut(coordinates=np.concatenate(coordinates), errors=np.concatenate(errors))


def _curve(peaks: Peaks, operators: Sequence[Operator], seconds: Floats, growth: Growth, seed: int) -> _Curve:
    terms = law_terms(operators, peaks)
    factors, _ = nnls(terms / seconds[:, None], np.ones(len(seconds)))
    for _ in range(3):  # towards least relative deviations
        errors = np.abs(np.log(np.maximum(terms @ factors, 1e-12) / seconds)) + 0.02
        weights = 1 / (seconds * np.sqrt(errors))
        factors, _ = nnls(terms * weights[:, None], seconds * weights)
    bare = _Curve(peaks=peaks, factors=factors, forest=Forest(edges=(), start=0.0, trees=(), num_forests=1))
    law = np.log(bare.law_s(operators))
    forest = grow(_with_law(operators, peaks, law), np.log(seconds) - law, growth, seed=seed)
    return replace(bare, forest=forest)


def _with_law(operators: Sequence[Operator], peaks: Peaks, law: Floats) -> Floats:
    return np.column_stack([features(operators, peaks), law])


def _places(operators: Sequence[Operator]) -> _Places:
    loads: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for operator in operators:
        loads.setdefault(shape_of(operator), []).append(load_of(operator))
    at = _positions(operators)
    return _Places(
        loads={shape: _logs(found) for shape, found in loads.items()},
        shapes=_logs(list(loads)),
        least=at.min(axis=0),
        most=at.max(axis=0),
    )


def _hardness(operators: Sequence[Operator], curve: _Curve, places: _Places) -> Floats:
    """Coordinates along which errors differ: how far the nearest measurement is, the time, and what bounds it."""
    num_bytes, flop = bytes_and_flop(operators)
    time, intensity = np.log2(curve.law_s(operators)), np.log2(flop / num_bytes)
    return np.column_stack([2 * places.distances(operators), time, 0.5 * intensity])


def _positions(operators: Sequence[Operator]) -> Floats:
    return _logs([(*load_of(operator), *shape_of(operator)) for operator in operators])


def _logs(rows: Sequence[tuple[int, ...]]) -> Floats:
    return np.log2(np.maximum(np.array(rows, float), 0.5))  # a flag is 0 or 1
