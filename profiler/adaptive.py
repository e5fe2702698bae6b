"""Which measurements to go on with: those whose uncertainty matters most for whole models.

At one point, in one format and runtime, a typical child of L layers holds every one of V mixers, and of V' ffns, in
L/V, or L/V', of them. A part's share in how well that child's time T is known is

    L/V · half-width(part) / T

and the shares of different parts are independent, so that their squares add up. T is taken from the parent, the first
of the whole models. What whole models share, the intercept and the scale, is as sure as the mean half-width of those
it is fitted on, by the root of their number.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blockwright.profiler.clock import Timing
from blockwright.profiler.measure import PartCase, TimedCase, WholesCase

_LEAST_GAIN = 0.05
"""A round that takes less than this share off the uncertainty of the worst point was in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """How well a typical child's time is known, as a share of it."""

    of_cases: dict[str, float]
    """What each case adds, by its name."""
    of_groups: dict[tuple, float]
    """At every point, in every format and runtime that whole models were measured at."""

    @property
    def worst(self) -> float:
        """At the point that is known worst; 0 where there is none."""
        return max(self.of_groups.values(), default=0.0)


def uncertainty_of(timed: Sequence[tuple[TimedCase, Sequence[Timing]]]) -> Uncertainty:
    """How well a typical child's time is known from these timings.

    Args:
        timed: cases with the timings of each; points without whole models do not count.
    """
    groups: dict[tuple, list[tuple[TimedCase, Sequence[Timing]]]] = defaultdict(list)
    for case, timings in timed:
        groups[_group(case)].append((case, timings))
    of_cases: dict[str, float] = {}
    of_groups: dict[tuple, float] = {}
    for key, members in groups.items():
        wholes = [timings for case, timings in members if isinstance(case, WholesCase)]
        if not wholes:
            continue
        whole_s, num_layers = wholes[0][0].calm_s, len(members[0][0].bench.model.layers)
        counts = _offered(members)
        shares: dict[str, float] = {}
        for case, timings in members:
            if isinstance(case, PartCase):
                often = num_layers / counts[case.part]
                shares[case.name] = often * _half_width(timings[0]) / whole_s
            else:
                each = [_half_width(timing) / timing.calm_s for timing in timings]
                shares[case.name] = float(np.mean(each) / np.sqrt(len(each)))
        of_cases |= shares
        of_groups[key] = float(np.linalg.norm(list(shares.values())))
    return Uncertainty(of_cases=of_cases, of_groups=of_groups)


def next_cases(cases: Sequence[TimedCase], known: Uncertainty, target: float) -> list[TimedCase]:
    """The cases that are to be measured again: those that have more than an equal part of what the target allows.

    Args:
        cases: all of them, in the order to measure them in.
        known: how well they are known.
        target: how well a typical child's time is to be known, as a share of it.
    """
    sizes = defaultdict(int)
    for case in cases:
        sizes[_group(case)] += 1
    return [
        case
        for case in cases
        if known.of_groups.get(_group(case), 0.0) > target
        and known.of_cases[case.name] > target / np.sqrt(sizes[_group(case)])
    ]


def is_gain(before: Uncertainty, after: Uncertainty) -> bool:
    """Whether a round was worth its time."""
    return after.worst < (1 - _LEAST_GAIN) * before.worst


def _group(case: TimedCase) -> tuple:
    return (case.bench.backend, str(case.bench.weights), case.point)


def _offered(members: Sequence[tuple[TimedCase, Sequence[Timing]]]) -> dict[str, int]:
    """How many mixers and ffns a child's layer has to choose from, nothing at all included."""
    parts = [case.part for case, _ in members if isinstance(case, PartCase)]
    return {part: parts.count(part) + 1 for part in ("mixer", "ffn")}


def _half_width(timing: Timing) -> float:
    return (timing.high_s - timing.low_s) / 2
