"""The exact choice, by going through all that could be better than the best one known.

With prices λ and their bound, a choice c has the reduced score r_c = s_c + λ·a_c − min over its group. Taking it lifts
the bound by at least r_c, so no choice with

    bound + r_c ≥ ceiling                                                            (1)

is part of anything below the ceiling. `core.py` goes through what is left.

The best score need not be known: bound + δ is taken for a ceiling. Where nothing lies below it, it is a better bound,
and δ grows; the first δ with something below it holds the best there is. A beam search (the same labels, only so many
kept) makes a first choice.

Shapes: C choices, G groups, R rows, M prices.
"""

import functools
from dataclasses import replace

import numpy as np
from threadpoolctl import ThreadpoolController

from blockwright.search.arrays import Arrays
from blockwright.search.core import Accept, Core, Found
from blockwright.search.relaxation import Relaxation, reduced_scores

_BEAM = 128
_PRICES_TO_REMEMBER = 16
_GROWTH = 1.7
"""Of δ from one ceiling to the next."""
_FIRST_SHARE = 0.5
"""The first δ leaves so many more choices than groups, as a share of the groups."""
_PRECISION = 1e-12
"""Of the largest score, times the groups: scores that differ by less are equal."""


def find_best(
    arrays: Arrays,
    relaxation: Relaxation,
    *,
    deadline: float,
    tolerance: float = 0.0,
    best: Found | None = None,
    accept: Accept = lambda columns_G: True,
    floor: float = -np.inf,
    learnt_MR: np.ndarray | None = None,
) -> Found:
    """The choice with the least score within all rows.

    Args:
        arrays: the problem, scaled.
        relaxation: of it.
        deadline: `time.monotonic()` at which to stop with what there is.
        tolerance: stop as soon as the score is known to be within this of the least.
        best: a choice that is within all rows, if one is known.
        accept: whether a choice is within all rows to the last digit, which rounding may leave open here.
        floor: a bound that is known already.
        learnt_MR: prices from a problem of the kind.

    Returns:
        The choice and the bound, which equals its score where it is proven the least and tolerance is 0.
    """
    with _blas().limit(limits=1):
        return _find_best(arrays, relaxation, deadline, tolerance, best, accept, floor, learnt_MR)


def _find_best(
    arrays: Arrays,
    relaxation: Relaxation,
    deadline: float,
    tolerance: float,
    best: Found | None,
    accept: Accept,
    floor: float,
    learnt_MR: np.ndarray | None,
) -> Found:
    precision = _PRECISION * float(np.abs(arrays.scores_C).max(initial=0.0)) * arrays.num_groups
    found = best or Found(columns_G=None, score=np.inf, bound=relaxation.bound)
    reduced_C = reduced_scores(arrays, relaxation.prices_R)
    slack_R = np.maximum(0.0, arrays.room_R - arrays.least_R())
    widest = float(np.maximum.reduceat(reduced_C, arrays.starts_G).sum() + relaxation.prices_R @ slack_R) + precision
    step = _first_delta(reduced_C, arrays.num_groups)
    bound = max(relaxation.bound, floor)
    delta = max(precision, step, bound - relaxation.bound + 0.25 * step)
    while found.score - bound > max(tolerance, precision):
        prices = relaxation.prices_R[None] if learnt_MR is None else np.vstack([relaxation.prices_R, learnt_MR])
        core = Core(arrays, reduced_C, min(delta, widest, found.score - relaxation.bound) + precision, prices, accept)
        found = core.search(found, deadline=deadline, beam=_BEAM).found
        ceiling = relaxation.bound + delta
        if ceiling >= min(found.score - tolerance, relaxation.bound + widest):
            ceiling = np.inf
        done = core.search(found, deadline=deadline, ceiling=ceiling, tolerance=tolerance, precision=precision)
        found, learnt_MR = done.found, core.best_prices(_PRICES_TO_REMEMBER)
        if not done.is_complete:
            break
        if found.score < ceiling:  # a last group may end above the ceiling, with room to spare
            bound = max(bound, found.score - tolerance)
            break
        bound, delta = max(bound, ceiling), delta * _GROWTH
    return replace(found, bound=min(bound, found.score), prices_MR=learnt_MR)


@functools.cache
def _blas() -> ThreadpoolController:
    """NumPy's matrix products: of these sizes they take twice as long with threads that wait for each other."""
    return ThreadpoolController().select(user_api="blas")


def _first_delta(reduced_C: np.ndarray, num_groups: int) -> float:
    above = np.sort(reduced_C[reduced_C > 0])
    return float(above[min(len(above) - 1, int(_FIRST_SHARE * num_groups))]) if len(above) else np.inf
