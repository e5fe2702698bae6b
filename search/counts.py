"""The choice with the most of something that does not depend on where a choice stands, such as parameters.

Layers of a decoder offer the same variants at the same costs. Where they differ in nothing but their scores, a choice
that is not about scores is one of many alike, which a search for single choices goes through one by one. So groups
that offer the same are counted together:

Data        classes k of groups that offer the same shapes at the same costs, m_k groups each
Variables   n_v ∈ {0, …, m_k}        how many groups of the class take shape v
            u_s ∈ {0, 1}             whether shape s is taken anywhere
            r_l ∈ {0, 1}             whether layer l is nothing, where these must stand next to each other
Objective   maximise Σ_v amount_v · n_v
Constraints (1) Σ_{v ∈ k} n_v = m_k           for every class
            (2) the limits, with a_bv · n_v   for every limit
            (3) n_v ≤ m_k · u_s,  Σ_s u_s ≤ k            shapes, those that are nothing aside
            (4) Σ_{v ∈ k, nothing} n_v = Σ_{l ∈ k} r_l,  start_l ≥ r_l − r_{l−1},  Σ_l start_l ≤ 1

(1) to (4) are those of `problem.py`. Who takes what within a class is then the assignment with the least sum of scores.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model
from scipy.optimize import linear_sum_assignment

from blockwright.search.problem import Choice, Problem, is_within

_SCALE = 10**12
"""The largest cost of a row in whole numbers. Costs are rounded up: all of it is far within ε of the limit."""
_GAP = 1e-4
"""As a share of the most: limits on bytes and parameters are so alike that the last digits take minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """Groups that offer the same, and how many of them take which of its choices."""

    groups: tuple[int, ...]
    offered: tuple[Choice, ...]
    """Of the first of them."""
    counts: tuple[cp_model.IntVar, ...]


def choose_most(
    problem: Problem, amount_of: Callable[[Choice], int], time_limit_s: float = 60.0
) -> tuple[Choice, ...] | None:
    """The choice with the most of an amount, to a part in 10,000; alike layers take what is best for the scores.

    Args:
        problem: what to choose from; every limit counts, whatever decision it belongs to.
        amount_of: the same for choices of one shape.
        time_limit_s: seconds after which the most found so far is given.

    Returns:
        One choice per group; None where there is none within the limits and rules, or none was found in time.
    """
    model = cp_model.CpModel()
    classes = _classes(model, problem)
    taken = [(choice, count) for each in classes for choice, count in zip(each.offered, each.counts, strict=True)]
    for row, limit in enumerate(problem.limits):
        if math.isfinite(limit.limit):
            sign = -1 if limit.is_least else 1
            _add_row(model, [(n, sign * choice.costs[row]) for choice, n in taken], sign * (limit.end - limit.fixed))
    if problem.most_shapes is not None:
        _limit_shapes(model, classes, problem.most_shapes)
    removed = _keep_contiguous(model, problem, classes) if problem.is_contiguous else []
    model.maximize(sum(amount_of(choice) * count for choice, count in taken))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # the same choice every time
    solver.parameters.random_seed = 0
    solver.parameters.presolve_inclusion_work_limit = 0  # as in general.py
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.relative_gap_limit = _GAP
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    is_removed = [solver.boolean_value(variable) for variable in removed]
    chosen = dict(item for each in classes for item in _assigned(problem, each, solver, is_removed))
    whole = tuple(chosen[index] for index in range(len(problem.groups)))
    return whole if is_within(problem, whole) else None


def _classes(model: cp_model.CpModel, problem: Problem) -> list[_Class]:
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, group in enumerate(problem.groups):
        offered = tuple((choice.shape, choice.costs) for choice in group)
        alike.setdefault(offered, []).append(index)
    classes = []
    for indices in alike.values():
        offered = problem.groups[indices[0]]
        counts = tuple(model.new_int_var(0, len(indices), "") for _ in offered)
        model.add(sum(counts) == len(indices))  # (1)
        classes.append(_Class(groups=tuple(indices), offered=offered, counts=counts))
    return classes


def _add_row(model: cp_model.CpModel, terms: Sequence[tuple[cp_model.IntVar, float]], room: float) -> None:
    scale = _SCALE / max(max((abs(cost) for _, cost in terms), default=0.0), 1e-300)
    weights = [math.ceil(cost * scale) for _, cost in terms]
    most = math.floor(float(np.clip(room * scale, -(2.0**62), 2.0**62)))
    model.add(cp_model.LinearExpr.weighted_sum([count for count, _ in terms], weights) <= most)  # (2)


def _limit_shapes(model: cp_model.CpModel, classes: Sequence[_Class], most: int) -> None:
    used: dict[object, cp_model.IntVar] = {}
    for each in classes:
        for choice, count in zip(each.offered, each.counts, strict=True):
            if not choice.is_removed:
                variable = used.setdefault(choice.shape, model.new_bool_var(""))
                model.add(count <= len(each.groups) * variable)  # (3)
    model.add(sum(used.values()) <= most)


def _keep_contiguous(model: cp_model.CpModel, problem: Problem, classes: Sequence[_Class]) -> list[cp_model.IntVar]:
    """Whether each group is nothing."""
    removed = [model.new_bool_var("") for _ in problem.groups]
    for each in classes:
        nothing = [n for choice, n in zip(each.offered, each.counts, strict=True) if choice.is_removed]
        model.add(sum(nothing) == sum(removed[group] for group in each.groups))  # (4)
    starts = [model.new_bool_var("") for _ in removed]
    for start, before, now in zip(starts, [0, *removed], removed, strict=False):
        model.add(start >= now - before)
    model.add(sum(starts) <= 1)
    return removed


def _assigned(
    problem: Problem, each: _Class, solver: cp_model.CpSolver, is_removed: Sequence[bool]
) -> list[tuple[int, Choice]]:
    """Which group of a class takes what, by the least sum of scores; who is nothing may be given."""
    places = list(itertools.chain(*([place] * solver.value(count) for place, count in enumerate(each.counts))))
    scores_GP = np.array([[problem.groups[group][place].score for place in places] for group in each.groups])
    if is_removed:
        is_nothing_P = np.array([each.offered[place].is_removed for place in places])
        scores_GP[np.array([is_removed[group] for group in each.groups])[:, None] != is_nothing_P] = np.inf
    _, columns_G = linear_sum_assignment(scores_GP)
    taken = (places[column] for column in columns_G)
    return [(group, problem.groups[group][place]) for group, place in zip(each.groups, taken, strict=True)]
