"""How long operators take on a new device, from what another was measured to do and a few measurements on the new one.

The source's times are explained by `datasheet.py`'s model with an `Efficiency` of the source's own; what is left over
is the residual. On the target the same model stands with the target's ceilings, and we believe before any measurement:

    log time = log model(target, source's efficiency) + share · residual + offset + g(sizes)

Each field of the target's efficiency is the source's, give or take a factor; sensitivities turn that into columns of a
linear model that act where they should: launches on small operators, bandwidth on what is bound by memory, the rate and
the tiles on what is bound by products. A share of the residual carries over, for libraries differ. Offsets are common
and each kind's and format's own, and g is a Gaussian process over the logarithms of sizes. All of it is Gaussian, so
measurements update it in closed form, no measurement leaves it as it was, and the points to measure are those that
lower the mean variance of what is asked most, one after another: before anything is measured, and always the same.

Where that belief predicts the measurements, each left out in turn, worse than the source's utilisation copied, the copy
takes its place, the more surely the more was measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.datasheet import (
    EFFICIENCIES,
    Efficiency,
    Kind,
    Times,
    by_kind,
    fit_efficiency,
    modelled_times,
    roofline_s,
    sensitivity,
    sizes,
)
from blockwright.profiler.operators import Attend, Matmul, Operator

_DRIFT_SD = np.array([0.2, 0.1, 0.1, 0.3, 0.4, 0.3, 0.3, 0.3])
"""Of the logarithm of each field of an `Efficiency`, from one device to another: two thirds of how devices spread."""
_SHARE, _SHARE_SD = 0.85, 0.3
_OFFSET_SD, _FORMAT_SD = 0.1, 0.1
_SMOOTH_SD, _SMOOTH_LENGTH = 0.08, 1.5
"""Of the Gaussian process; its length is of the logarithm, a factor of 4.5."""
_SCATTER = 0.07
"""Of one operator, from one tile or library's choice to the next: medians of 3 %, with wide tails (two versions of one
library on one GPU)."""
_PRIOR_POINTS = 10
"""As so many measurements the belief in its own spread counts."""
_SAMPLE, _CANDIDATES = 700, 800
"""Operators that the source's efficiency is fitted to; and that points are chosen from, and for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A device that is known well."""

    ceilings: Ceilings
    utilisation: Callable[[Sequence[Operator]], np.ndarray]
    """The share of its roofline that each operator reaches, by its ceilings' values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A measurement on the target."""

    operator: Operator
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Belief:
    """Of the logarithm of times on the target, before any measurement."""

    mean: np.ndarray
    copied: np.ndarray
    """The same by the source's utilisation alone."""
    columns: np.ndarray
    """(operators, unknowns), scaled so that each unknown has a standard deviation of 1."""
    places: np.ndarray
    """(operators, 4): the kind, and the logarithms of three sizes in lengths of the process."""

    def take(self, at: np.ndarray) -> "_Belief":
        return _Belief(mean=self.mean[at], copied=self.copied[at], columns=self.columns[at], places=self.places[at])

    def covariance(self, other: "_Belief") -> np.ndarray:
        apart = ((self.places[:, None] - other.places[None]) ** 2).sum(axis=2)
        return self.columns @ other.columns.T + _SMOOTH_SD**2 * np.exp(-apart / 2)

    def variance(self) -> np.ndarray:
        return (self.columns**2).sum(axis=1) + _SMOOTH_SD**2


def design_points(
    operators: Sequence[Operator],
    num_points: int,
    source: Source,
    target: Ceilings,
    efficiencies: dict[Kind, Efficiency] = EFFICIENCIES,
) -> list[Operator]:
    """Which operators to measure on the target, the most telling first: fewer points are the beginning of more.

    Args:
        operators: what may be measured, and what is to be predicted.
        num_points: how many; at most as many as there are different operators.
        source: the device that is known.
        target: the new device's datasheet.
        efficiencies: what is expected of any device.

    Raises:
        InputError: no point is asked for, or more than there are operators; or the source does not know one.
    """
    different = sorted(set(operators), key=repr)  # so that the order they come in does not matter
    if not 1 <= num_points <= len(different):
        raise InputError(
            "points to measure",
            got=num_points,
            expected=f"1 to {len(different)}, as many as there are different operators",
            remedy="20 are enough for most devices.",
        )
    candidates = _spread(different, max(_CANDIDATES, num_points), source)
    belief = _believe(candidates, source, target, efficiencies)
    covariance, chosen = belief.covariance(belief), []
    for _ in range(num_points):
        known = covariance.diagonal() + _SCATTER**2
        gain = (covariance**2).sum(axis=0) / known
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        chosen.append(best)
        covariance = covariance - np.outer(covariance[:, best], covariance[best]) / known[best]
    return [candidates[i] for i in chosen]


def transfer(
    source: Source,
    target: Ceilings,
    measured: Sequence[Timing],
    operators: Sequence[Operator],
    efficiencies: dict[Kind, Efficiency] = EFFICIENCIES,
) -> Times:
    """Times of operators on the target, at intervals of 90 %.

    Args:
        source: the device that is known.
        target: the new device's datasheet, or its measured ceilings.
        measured: times on the new device, best of the operators that `design_points` names.
        operators: what to predict.
        efficiencies: what is expected of any device.

    Raises:
        InputError: nothing was measured, or a time is not above zero; a format's rate is missing; or the source does
            not know one of the operators.
    """
    _check_measured(measured)
    everything = [timing.operator for timing in measured] + list(operators)
    num_points = len(measured)
    belief = _believe(everything, source, target, efficiencies)
    points, asked = (belief.take(np.arange(len(everything))[part]) for part in _halves(num_points))
    seen = np.log([timing.time_s for timing in measured])

    inverse = np.linalg.inv(points.covariance(points) + _SCATTER**2 * np.eye(num_points))
    left = inverse @ (seen - points.mean)
    between = asked.covariance(points)
    corrected = asked.mean + between @ left
    spread = np.sqrt(asked.variance() - np.einsum("ij,jk,ik->i", between, inverse, between) + _SCATTER**2)

    # Of each measurement left out: its error is left / diagonal, its variance 1 / diagonal, of the inverse.
    errors, variances = left / inverse.diagonal(), 1 / inverse.diagonal()
    copied_errors = seen - points.copied
    trust = _trust(errors, copied_errors)
    scale = np.sqrt((_PRIOR_POINTS + (errors**2 / variances).sum()) / (_PRIOR_POINTS + num_points))
    copied_spread = np.sqrt((_PRIOR_POINTS * spread**2 + (copied_errors**2).sum()) / (_PRIOR_POINTS + num_points))
    middle = trust * corrected + (1 - trust) * asked.copied
    half = (trust * scale * spread + (1 - trust) * copied_spread) * student.ppf(0.95, _PRIOR_POINTS + num_points)
    return Times(time_s=np.exp(middle), low_s=np.exp(middle - half), high_s=np.exp(middle + half), origin="transferred")


def copied_times(source: Source, target: Ceilings, operators: Sequence[Operator]) -> np.ndarray:
    """Times on the target if it reached what the source reaches of its roofline."""
    return roofline_s(operators, target) / _utilisation(source, operators)


def _trust(errors: np.ndarray, copied_errors: np.ndarray) -> float:
    """The weight of the belief against the copy: the odds of two Gaussian errors of unknown size."""
    ratio = (errors @ errors + 1e-12) / (copied_errors @ copied_errors + 1e-12)
    return float(1 / (1 + np.clip(ratio, 1e-6, 1e6) ** (len(errors) / 2)))


def _halves(num_points: int) -> tuple[slice, slice]:
    return slice(0, num_points), slice(num_points, None)


def _believe(
    operators: Sequence[Operator], source: Source, target: Ceilings, efficiencies: dict[Kind, Efficiency]
) -> _Belief:
    source_s = roofline_s(operators, source.ceilings) / _utilisation(source, operators)
    kinds = by_kind(operators)
    formats = sorted({_format(operator) for operator in operators})
    mean, places = np.empty(len(operators)), np.zeros((len(operators), 4))
    blocks = []
    for number, (kind, at) in enumerate(kinds.items()):
        here = [operators[i] for i in at]
        own = _fitted(here, source_s[at], source.ceilings, efficiencies[kind])
        there, residual = (
            _modelled(here, target, kind, own),
            np.log(source_s[at] / np.exp(_modelled(here, source.ceilings, kind, own))),
        )
        mean[at] = there + _SHARE * residual
        places[at, 0] = 100 * number  # kinds have nothing in common here
        extents = np.log([sizes(operator)[:3] for operator in here]) / _SMOOTH_LENGTH
        places[at, 1 : 1 + extents.shape[1]] = extents
        drift = np.zeros((len(operators), 9))
        drift[at, :8] = sensitivity(here, target, own) * _DRIFT_SD
        drift[at, 8] = _SHARE_SD * residual
        blocks.append(drift)
    named = np.array([_format(operator) for operator in operators])
    offsets = np.stack([np.full(len(operators), _OFFSET_SD), *(_FORMAT_SD * (named == name) for name in formats)], 1)
    copied = np.log(source_s * roofline_s(operators, target) / roofline_s(operators, source.ceilings))
    # Half of what a device's efficiency differs by is common to all kinds of operators.
    columns = np.concatenate([offsets, sum(blocks) * 0.5**0.5, *(block * 0.5**0.5 for block in blocks)], axis=1)
    return _Belief(mean=mean, copied=copied, columns=columns, places=places)


def _fitted(operators: list[Operator], times_s: np.ndarray, ceilings: Ceilings, expected: Efficiency) -> Efficiency:
    """The source's own efficiency, from a sample spread over its times."""
    order = np.lexsort((np.log([sizes(operator)[0] for operator in operators]), times_s))
    sample = order[_evenly(len(order), _SAMPLE)]
    return fit_efficiency([operators[i] for i in sample], times_s[sample], ceilings, expected)


def _modelled(operators: list[Operator], ceilings: Ceilings, kind: Kind, efficiency: Efficiency) -> np.ndarray:
    return np.log(modelled_times(operators, ceilings, {kind: efficiency}).time_s)


def _spread(operators: list[Operator], num: int, source: Source) -> list[Operator]:
    """At most so many, of every kind its part, from the quickest to the slowest."""
    if len(operators) <= num:
        return operators
    times_s = roofline_s(operators, source.ceilings) / _utilisation(source, operators)
    order = np.concatenate([at[np.argsort(times_s[at], kind="stable")] for at in by_kind(operators).values()])
    return [operators[i] for i in order[_evenly(len(order), num)]]


def _evenly(length: int, num: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(num, length)).round().astype(int))


def _format(operator: Operator) -> str:
    """Kernels are written per kind and format, so these go faster or slower together."""
    match operator:
        case Matmul(weights=weights):
            return f"matmul {weights}"
        case Attend(new_tokens=new_tokens, bytes_per_value=size):
            return f"{'decode' if new_tokens == 1 else 'prefill'} {size}"
        case _:
            return "elementwise"


def _utilisation(source: Source, operators: Sequence[Operator]) -> np.ndarray:
    found = np.asarray(source.utilisation(operators), dtype=float)
    good = np.isfinite(found) & (found > 0)
    if found.shape != (len(operators),) or not good.all():
        first = "of another number" if found.shape != (len(operators),) else operators[int(np.argmin(good))]
        raise InputError(
            "source.utilisation",
            got=first if isinstance(first, str) else f"no utilisation of {first}",
            expected="a share above zero for each operator",
            remedy="Measure operators like it on the source, or leave it out.",
        )
    return found


def _check_measured(measured: Sequence[Timing]) -> None:
    bad = [timing for timing in measured if not (np.isfinite(timing.time_s) and timing.time_s > 0)]
    if bad or not measured:
        raise InputError(
            "measured",
            got=f"{bad[0].time_s} s of {bad[0].operator}" if bad else "no measurement",
            expected="at least one operator's time on the target, each above zero",
            remedy="Measure the operators that design_points names.",
        )
