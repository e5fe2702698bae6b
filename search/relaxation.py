"""The linear relaxation, and the prices that come with it.

With shares in place of choices the problem is a linear program; its dual gives every row r a price λ_r ≥ 0 (score per
unit of cost), and for any prices

    bound(λ) = Σ_g min_{c ∈ g} (s_c + λ · a_c) − λ · b

is no more than the score of any choice within all rows (Lagrangian bound; Fisher 1981). The best prices come from
GLOP, which is given few columns: those that some prices make the cheapest of their group, then, round by round, those
that beat them at the prices found (column generation). The bound is then taken over all columns in floating point, so
it holds whatever tolerance GLOP works to.

Shapes: C choices, G groups, R rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ortools.linear_solver.python import model_builder_helper
from scipy.sparse import csr_matrix, hstack, vstack

from blockwright.search.arrays import Arrays

_lp: Any = model_builder_helper
"""Its type stubs take shapes of arrays for their types."""

_PRICE_DRAWS = 24
"""Random prices whose cheapest columns GLOP starts from: with 24, one or two rounds suffice at 80 x 54 and 126 x 400
(measured on a Zen 3, `benchmarks/search.py`); more cost more than they save."""
_COLUMNS_PER_ROUND = 3
_WARM_COLUMNS = 4
_CLOSE_ENOUGH = 1e-10
"""Of the objective: columns that would gain less are left out."""
_INFEASIBLE = 1e-9
"""Excess over the scaled rows from which on no share of choices fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """The best bound there is by prices alone."""

    bound: float
    prices_R: np.ndarray
    """Score per unit of each row's cost."""


def relax(arrays: Arrays, start_R: np.ndarray | None = None) -> Relaxation | None:
    """Solves the relaxation.

    Args:
        arrays: the problem, scaled.
        start_R: prices of a similar problem, to begin with.

    Returns:
        The prices and the bound; None where not even shares of choices are within all rows.
    """
    if not len(arrays.room_R):
        return Relaxation(bound=priced_bound(arrays, np.zeros(0)), prices_R=np.zeros(0))
    is_in_C = _first_columns(arrays) if start_R is None else _ranks(arrays, _priced(arrays, start_R)) < _WARM_COLUMNS
    prices_R = _generate(arrays, is_in_C)
    if prices_R is None:
        if _least_excess(arrays, is_in_C) > _INFEASIBLE:
            return None
        prices_R = _generate(arrays, is_in_C)
    if prices_R is None:  # within GLOP's tolerance of infeasible: no price, but a bound all the same
        prices_R = np.zeros(len(arrays.room_R))
    return Relaxation(bound=priced_bound(arrays, prices_R), prices_R=prices_R)


def priced_bound(arrays: Arrays, prices_R: np.ndarray) -> float:
    """bound(λ) for any prices that are not negative."""
    least_G = np.minimum.reduceat(_priced(arrays, prices_R), arrays.starts_G)
    return float(least_G.sum() - prices_R @ arrays.room_R)


def reduced_scores(arrays: Arrays, prices_R: np.ndarray) -> np.ndarray:
    """How much the bound rises, at least, when each choice is taken: s_c + λ · a_c above the least of its group."""
    priced_C = _priced(arrays, prices_R)
    return priced_C - np.minimum.reduceat(priced_C, arrays.starts_G)[arrays.group_C]


def solve_lp(
    scores_C: np.ndarray,
    costs_CR: np.ndarray,
    room_R: np.ndarray,
    group_C: np.ndarray,
    excess_price: float | None = None,
) -> tuple[float, np.ndarray] | None:
    """The relaxation over all columns given: objective and prices; None where it is infeasible.

    Args:
        scores_C: objective.
        costs_CR: rows.
        room_R: their right-hand sides.
        group_C: each column's group, numbered from 0 without gaps.
        excess_price: what a unit above any room costs; None where nothing may be above.
    """
    num_columns, num_rows, num_groups = len(scores_C), len(room_R), int(group_C[-1]) + 1
    once = csr_matrix((np.ones(num_columns), (group_C, np.arange(num_columns))), shape=(num_groups, num_columns))
    matrix = vstack([once, csr_matrix(costs_CR.T)], format="csr")
    if excess_price is not None:
        excess = csr_matrix(np.vstack([np.zeros((num_groups, num_rows)), -np.eye(num_rows)]))
        matrix = hstack([matrix, excess], format="csr")
        scores_C = np.append(scores_C, np.full(num_rows, excess_price))
    lower = np.append(np.ones(num_groups), np.full(num_rows, -np.inf))
    upper = np.append(np.ones(num_groups), room_R)
    model = _lp.ModelBuilderHelper()
    model.fill_model_from_sparse_data(
        np.zeros(len(scores_C)), np.full(len(scores_C), np.inf), scores_C, lower, upper, matrix
    )
    solver = _lp.ModelSolverHelper("glop")
    solver.solve(model)
    if solver.status() != _lp.SolveStatus.OPTIMAL:
        return None
    return solver.objective_value(), np.maximum(0.0, -solver.dual_values()[num_groups:])


def _generate(arrays: Arrays, is_in_C: np.ndarray, excess_price: float | None = None) -> np.ndarray | None:
    """Column generation from the columns in `is_in_C`, which grows in place; None where they hold no solution."""
    starts = arrays.starts_G
    while True:
        columns = np.flatnonzero(is_in_C)
        found = solve_lp(
            arrays.scores_C[columns], arrays.costs_CR[columns], arrays.room_R, arrays.group_C[columns], excess_price
        )
        if found is None:
            return None
        objective, prices_R = found
        priced_C = _priced(arrays, prices_R)
        known_G = np.minimum.reduceat(np.where(is_in_C, priced_C, np.inf), starts)
        gain_C = known_G[arrays.group_C] - priced_C
        if np.maximum.reduceat(gain_C, starts).sum() <= _CLOSE_ENOUGH * max(abs(objective), 1e-300):
            return prices_R
        is_in_C |= (gain_C > 0) & (_ranks(arrays, priced_C) < _COLUMNS_PER_ROUND)


def _least_excess(arrays: Arrays, is_in_C: np.ndarray) -> float:
    """The least sum of excesses over the scaled rows; columns that reach it join `is_in_C`."""
    no_score = Arrays(
        scores_C=np.zeros_like(arrays.scores_C),
        costs_CR=arrays.costs_CR,
        room_R=arrays.room_R,
        group_C=arrays.group_C,
    )
    prices_R = _generate(no_score, is_in_C, excess_price=1.0)
    return 0.0 if prices_R is None else priced_bound(no_score, np.minimum(prices_R, 1.0))


def _priced(arrays: Arrays, prices_R: np.ndarray) -> np.ndarray:
    return arrays.scores_C + arrays.costs_CR @ prices_R


def _ranks(arrays: Arrays, values_C: np.ndarray) -> np.ndarray:
    """Each choice's place in its group, the least value first."""
    order = np.lexsort((values_C, arrays.group_C))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - arrays.starts_G[arrays.group_C]
    return ranks


def _first_columns(arrays: Arrays) -> np.ndarray:
    """The columns that are the cheapest of their group at random prices, or in one row."""
    generator = np.random.default_rng(0)
    num_rows, starts = len(arrays.room_R), arrays.starts_G
    spread = (np.maximum.reduceat(arrays.scores_C, starts) - np.minimum.reduceat(arrays.scores_C, starts)).sum()
    shares = generator.dirichlet(np.full(num_rows, 0.5), _PRICE_DRAWS)
    prices = shares * spread * np.exp(generator.normal(0.0, 1.5, (_PRICE_DRAWS, 1)))
    values = np.column_stack(
        [arrays.scores_C[:, None] + arrays.costs_CR @ prices.T, arrays.costs_CR, arrays.costs_CR.sum(axis=1)]
    )
    return (values == np.minimum.reduceat(values, starts, axis=0)[arrays.group_C]).any(axis=1)
