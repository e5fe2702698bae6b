"""How long operators take on a new device, from what another was measured to do and a few measurements on the new one.

What is believed before any measurement is in `belief.py`. All of it is Gaussian, so measurements update it in closed
form, no measurement leaves it as it was, and the points to measure are those that lower the mean variance of what is
asked most, one after another: before anything is measured, and always the same.

Where that belief predicts the measurements, each left out in turn, worse than the source's utilisation copied, the copy
takes its place, the more surely the more was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.profiler.belief import EXPECTED, Belief, Expected, Source, believe, evenly, explain, utilisation_of
from blockwright.profiler.datasheet import Times, by_kind, roofline_s
from blockwright.profiler.operators import Operator

_PRIOR_POINTS = 10
"""As so many measurements the belief in its own spread counts: our judgement, half of the 20 that we advise."""
_CANDIDATES = 800
"""Operators that points are chosen from, and for: their covariances are a matrix of 5 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A measurement on the target."""

    operator: Operator
    time_s: float


def design_points(
    operators: Sequence[Operator],
    num_points: int,
    source: Source,
    target: Ceilings,
    expected: Expected = EXPECTED,
) -> list[Operator]:
    """Which operators to measure on the target, the most telling first: fewer points are the beginning of more.

    Args:
        operators: what may be measured, and what is to be predicted.
        num_points: how many; at most as many as there are different operators.
        source: the device that is known.
        target: the new device's datasheet.
        expected: what is expected of any device.

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
    belief = believe(explain(candidates, source, target, expected.efficiencies), expected.prior)
    covariance, chosen, scatter = belief.covariance(belief), [], expected.prior.scatter_sd**2
    for _ in range(num_points):
        known = covariance.diagonal() + scatter
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
    expected: Expected = EXPECTED,
) -> Times:
    """Times of operators on the target, at intervals of 90 %.

    Args:
        source: the device that is known.
        target: the new device's datasheet, or its measured ceilings.
        measured: times on the new device, best of the operators that `design_points` names.
        operators: what to predict.
        expected: what is expected of any device.

    Raises:
        InputError: nothing was measured, or a time is not above zero; a format's rate is missing; or the source does
            not know one of the operators.
    """
    _check_measured(measured)
    everything = [timing.operator for timing in measured] + list(operators)
    belief = believe(explain(everything, source, target, expected.efficiencies), expected.prior)
    here = np.arange(len(everything))
    points, asked = belief.take(here[: len(measured)]), belief.take(here[len(measured) :])
    return updated(points, asked, np.array([timing.time_s for timing in measured]))


def updated(points: Belief, asked: Belief, times_s: np.ndarray) -> Times:
    """What is believed once points were measured: times of what is asked, at intervals of 90 %."""
    seen, num_points, scatter = np.log(times_s), len(times_s), points.prior.scatter_sd**2
    inverse = np.linalg.inv(points.covariance(points) + scatter * np.eye(num_points))
    left = inverse @ (seen - points.mean)
    between = asked.covariance(points)
    corrected = asked.mean + between @ left
    spread = np.sqrt(asked.variance() - np.einsum("ij,jk,ik->i", between, inverse, between) + scatter)

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
    return roofline_s(operators, target) / utilisation_of(source, operators)


def _trust(errors: np.ndarray, copied_errors: np.ndarray) -> float:
    """The weight of the belief against the copy: the odds of two Gaussian errors of unknown size."""
    ratio = (errors @ errors + 1e-12) / (copied_errors @ copied_errors + 1e-12)
    return float(1 / (1 + np.clip(ratio, 1e-6, 1e6) ** (len(errors) / 2)))


def _spread(operators: list[Operator], num: int, source: Source) -> list[Operator]:
    """At most so many, of every kind its part, from the quickest to the slowest."""
    if len(operators) <= num:
        return operators
    times_s = roofline_s(operators, source.ceilings) / utilisation_of(source, operators)
    order = np.concatenate([at[np.argsort(times_s[at], kind="stable")] for at in by_kind(operators).values()])
    return [operators[i] for i in order[evenly(len(order), num)]]


def _check_measured(measured: Sequence[Timing]) -> None:
    bad = [timing for timing in measured if not (np.isfinite(timing.time_s) and timing.time_s > 0)]
    if bad or not measured:
        raise InputError(
            "measured",
            got=f"{bad[0].time_s} s of {bad[0].operator}" if bad else "no measurement",
            expected="at least one operator's time on the target, each above zero",
            remedy="Measure the operators that design_points names.",
        )
