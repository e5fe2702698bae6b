"""How long operators take on one device, from those that were timed there.

    time = law(operator) / utilisation(operator)

The law is a sum of physical terms (launch, bytes at the measured bandwidth, products at the measured rate, and the same
rounded up to whole waves), with factors fitted to the timed operators of its kind and none below zero. Utilisation is
what that leaves: boosted trees learn its logarithm from sizes, tiles and waves. Beyond the measured range trees hold
what they last saw, so that the law alone goes on.

What was timed is returned as it was, with its interval. All else carries an interval from errors on operators that were
held out, apart for three cases: other loads of a timed shape, shapes that were not timed, and what lies beyond the
measured range, whose origin is ``modelled``. Shares of ceilings above one are refused: they are mistakes of units or of
timing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from blockwright.cost import Origin
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.boosted import Floats, Growth
from blockwright.profiler.operator_features import bytes_and_flop, kind_of, peaks_of
from blockwright.profiler.operator_kind import KindTimes, fit_kind
from blockwright.profiler.operators import Operator

MOST_UTILISATION = 1.05
"""Of the ceilings that were measured: a little more than all, for ceilings are measured with an error too."""

_GROWTH = Growth()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """An operator and the seconds that it took."""

    operator: Operator
    time_s: float
    low_s: float | None = None
    """Of the time's interval; where it was not measured, the time itself."""
    high_s: float | None = None


class OperatorCosts(NamedTuple):
    """Seconds of many operators, an entry for each."""

    values: Floats
    lows: Floats
    highs: Floats
    origins: tuple[Origin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTimes:
    """Times of operators on one device; `fit_times` makes it."""

    timed: dict[Operator, tuple[float, float, float]]
    """The median of what was measured, and the least and the most of its intervals."""
    kinds: dict[tuple[str, ...], KindTimes]

    def costs(self, operators: Sequence[Operator]) -> OperatorCosts:
        """The seconds that each operator takes, with intervals and origins.

        Raises:
            InputError: nothing of an operator's kind was timed.
        """
        values, lows, highs = (np.zeros(len(operators)) for _ in range(3))
        origins: list[Origin] = ["measured"] * len(operators)
        to_predict: dict[tuple[str, ...], list[int]] = {}
        for index, operator in enumerate(operators):
            if operator in self.timed:
                values[index], lows[index], highs[index] = self.timed[operator]
            else:
                to_predict.setdefault(kind_of(operator), []).append(index)
        for kind, indices in to_predict.items():
            if kind not in self.kinds:
                raise InputError(
                    f"operator {operators[indices[0]]}",
                    got=" ".join(kind),
                    expected=" or ".join(" ".join(known) for known in self.kinds),
                    remedy="Time operators of this kind on the device.",
                )
            found = self.kinds[kind].costs([operators[index] for index in indices])
            values[indices], lows[indices], highs[indices] = found[:3]
            for index, is_beyond in zip(indices, found[3], strict=True):
                origins[index] = "modelled" if is_beyond else "interpolated"
        return OperatorCosts(values, lows, highs, tuple(origins))


def fit_times(
    ceilings: Ceilings, measured: Sequence[Timed], *, growth: Growth = _GROWTH, seed: int = 0
) -> OperatorTimes:
    """Learns a device's times from operators that were timed there.

    Args:
        ceilings: what the times are shares of.
        measured: at least one; an operator that is there several times counts with its median.
        growth: of the trees.
        seed: of folds and trees.

    Raises:
        InputError: nothing was measured, or a row is not a time or faster than the ceilings allow; it is named.
    """
    if not measured:
        raise InputError("measured", got="nothing", expected="operators with their times", remedy="Time some.")
    _check(measured, ceilings)
    timed = _timed(measured)
    kinds: dict[tuple[str, ...], list[Operator]] = {}
    for operator in timed:
        kinds.setdefault(kind_of(operator), []).append(operator)
    return OperatorTimes(
        timed=timed,
        kinds={
            kind: fit_kind(peaks_of(ceilings, operators[0]), operators, _seconds(timed, operators), growth, seed)
            for kind, operators in kinds.items()
        },
    )


def _timed(measured: Sequence[Timed]) -> dict[Operator, tuple[float, float, float]]:
    rows: dict[Operator, list[Timed]] = {}
    for row in measured:
        rows.setdefault(row.operator, []).append(row)
    return {
        operator: (
            float(np.median([row.time_s for row in found])),
            min(row.time_s if row.low_s is None else row.low_s for row in found),
            max(row.time_s if row.high_s is None else row.high_s for row in found),
        )
        for operator, found in rows.items()
    }


def _check(measured: Sequence[Timed], ceilings: Ceilings) -> None:
    """Refuses what cannot have been measured."""
    least_s = np.zeros(len(measured))
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(measured):
        kinds.setdefault(kind_of(row.operator), []).append(index)
    for indices in kinds.values():
        operators = [measured[index].operator for index in indices]
        least_s[indices] = peaks_of(ceilings, operators[0]).least_s(*bytes_and_flop(operators))
    for index, row in enumerate(measured):
        if not 0 < row.time_s < math.inf:
            raise InputError(
                _name(index, row), got=f"{row.time_s} s", expected="a time above zero", remedy="Measure it again."
            )
        utilisation = least_s[index] / row.time_s
        if utilisation > MOST_UTILISATION:
            raise InputError(
                _name(index, row),
                got=f"{row.time_s} s, {utilisation:.2f} of what the ceilings allow",
                expected=f"at most {MOST_UTILISATION} of it",
                remedy="Check the units and measure both again.",
            )


def _name(index: int, row: Timed) -> str:
    return f"measured[{index}], {row.operator}"


def _seconds(timed: dict[Operator, tuple[float, float, float]], operators: Sequence[Operator]) -> Floats:
    return np.array([timed[operator][0] for operator in operators])
