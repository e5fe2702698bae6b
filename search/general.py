"""The exact choice with pairs and rules on blocks, by CP-SAT.

To the constraints of `problem.py` come, with a variable z for every pair and u for every shape,

    z ≤ x_c,  z ≤ x_c′,  z ≥ x_c + x_c′ − 1        the first two where q < 0, the last where q > 0
    x_c ≤ u_s  for every choice c of shape s,  Σ_s u_s ≤ k                                              (3)
    start_l ≥ r_l − r_{l−1},  Σ_l start_l ≤ 1      where r_l says that layer l is nothing               (4)

CP-SAT works in whole numbers: scores are scaled so that the largest sum that they can spread over becomes 10^12, and
each row so that the same holds of its costs. Costs are rounded down by less than a part in 10^12 each, so that no
choice within the rows is lost; a choice that rounding alone lets in is excluded and the search goes on.

One shape for all layers needs no CP-SAT: shape by shape it is the plain problem.

Shapes: C choices, G groups, R rows.
"""

import time
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from blockwright.search.arrays import Arrays
from blockwright.search.core import Accept, Found
from blockwright.search.enumerate import find_best
from blockwright.search.relaxation import relax

_SCALE = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What a problem has beside rows."""

    pairs: tuple[tuple[int, int, float], ...]
    """Two choices and what both together add to the score."""
    shape_C: np.ndarray
    """The number of each choice's shape; -1 where nothing is left of the block."""
    most_shapes: int | None
    is_contiguous: bool


def find_with_structure(
    arrays: Arrays, structure: Structure, *, deadline: float, tolerance: float, accept: Accept
) -> Found:
    """As `find_best`, with pairs and rules; arrays are scaled."""
    if structure.most_shapes == 1 and not structure.pairs and not structure.is_contiguous:
        return _find_homogeneous(arrays, structure, deadline=deadline, tolerance=tolerance, accept=accept)
    return _find_by_cp_sat(arrays, structure, deadline=deadline, tolerance=tolerance, accept=accept)


def _find_homogeneous(
    arrays: Arrays, structure: Structure, *, deadline: float, tolerance: float, accept: Accept
) -> Found:
    best = Found(columns_G=None, score=np.inf, bound=np.inf)
    bound = np.inf
    for shape in sorted({int(shape) for shape in structure.shape_C}):
        columns = np.flatnonzero((structure.shape_C == shape) | (structure.shape_C == -1))
        if len(np.unique(arrays.group_C[columns])) < arrays.num_groups:
            continue
        part = Arrays(
            scores_C=arrays.scores_C[columns],
            costs_CR=arrays.costs_CR[columns],
            room_R=arrays.room_R,
            group_C=arrays.group_C[columns],
        )
        relaxation = relax(part)
        if relaxation is None:
            continue
        if relaxation.bound >= best.score - tolerance:
            bound = min(bound, relaxation.bound)
            continue

        def accepts(columns_G: np.ndarray, columns: np.ndarray = columns) -> bool:
            return accept(columns[columns_G])

        found = find_best(part, relaxation, deadline=deadline, tolerance=tolerance, accept=accepts)
        bound = min(bound, found.bound)
        if found.columns_G is not None and found.score < best.score:
            best = Found(columns_G=columns[found.columns_G], score=found.score, bound=found.bound)
    return Found(columns_G=best.columns_G, score=best.score, bound=min(bound, best.score))


def _find_by_cp_sat(
    arrays: Arrays, structure: Structure, *, deadline: float, tolerance: float, accept: Accept
) -> Found:
    model = cp_model.CpModel()
    taken = [model.new_bool_var("") for _ in arrays.scores_C]
    for group in range(arrays.num_groups):
        model.add_exactly_one(taken[c] for c in np.flatnonzero(arrays.group_C == group))  # (1)
    for row, room in enumerate(arrays.room_R):
        _add_row(model, taken, arrays.costs_CR[:, row], float(room))  # (2)
    _add_rules(model, taken, arrays, structure)
    together = [_product(model, taken[first], taken[second], score) for first, second, score in structure.pairs]
    scores = np.append(arrays.scores_C, [score for *_, score in structure.pairs])
    unit = max(float(np.abs(scores).sum()), 1e-250) / (_SCALE * 1e3)
    model.minimize(cp_model.LinearExpr.weighted_sum(taken + together, [round(score / unit) for score in scores]))
    rounding = unit * len(scores)
    while True:
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1  # the same plan every time; no slower than two on two cores
        solver.parameters.random_seed = 0
        # Presolve that folds groups into rows loses solutions: 18 wrong answers in 2500 small problems, none without
        # (OR-Tools 9.15.6755, measured against every choice; such as google/or-tools#5274).
        solver.parameters.presolve_inclusion_work_limit = 0
        solver.parameters.max_time_in_seconds = max(1e-3, deadline - time.monotonic())
        solver.parameters.absolute_gap_limit = min(max(0.0, tolerance / unit), 1e300)  # infinity is refused
        status = solver.solve(model)
        if status == cp_model.MODEL_INVALID:
            raise RuntimeError(f"CP-SAT refuses its model: {model.validate()}")
        if status == cp_model.INFEASIBLE:
            return Found(columns_G=None, score=np.inf, bound=np.inf)
        bound = solver.best_objective_bound * unit - rounding
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Found(columns_G=None, score=np.inf, bound=-np.inf)
        columns_G = np.array([c for c, variable in enumerate(taken) if solver.boolean_value(variable)])
        if accept(columns_G):
            score = float(arrays.scores_C[columns_G].sum())
            score += sum(q for first, second, q in structure.pairs if {first, second} <= set(columns_G.tolist()))
            is_proven = status == cp_model.OPTIMAL and tolerance <= rounding
            return Found(columns_G=columns_G, score=score, bound=score if is_proven else min(bound, score))
        model.add_bool_or([~taken[c] for c in columns_G])  # only rounding let it in


def _add_row(model: cp_model.CpModel, taken: list[cp_model.IntVar], costs_C: np.ndarray, room: float) -> None:
    """A row in whole numbers, costs rounded down and room up."""
    largest = float(np.abs(costs_C).max(initial=0.0))
    if largest == 0.0:  # and within its room, or the problem would not have come here
        return
    scale = _SCALE / largest
    weights = [int(np.floor(cost * scale)) for cost in costs_C]
    most = int(np.ceil(np.clip(room * scale, -(2.0**62), 2.0**62)))
    model.add(cp_model.LinearExpr.weighted_sum(taken, weights) <= most)


def _add_rules(model: cp_model.CpModel, taken: list[cp_model.IntVar], arrays: Arrays, structure: Structure) -> None:
    if structure.most_shapes is not None:
        shapes = sorted({int(shape) for shape in structure.shape_C} - {-1})
        used = {shape: model.new_bool_var("") for shape in shapes}
        for variable, shape in zip(taken, structure.shape_C, strict=True):
            if shape >= 0:
                model.add_implication(variable, used[int(shape)])  # (3)
        model.add(sum(used.values()) <= structure.most_shapes)
    if structure.is_contiguous:
        removed = []
        for group in range(arrays.num_groups):
            nothing = [taken[c] for c in np.flatnonzero((arrays.group_C == group) & (structure.shape_C == -1))]
            removed.append(sum(nothing))
        starts = [model.new_bool_var("") for _ in removed]
        for start, before, now in zip(starts, [0, *removed], removed, strict=False):
            model.add(start >= now - before)  # (4)
        model.add(sum(starts) <= 1)


def _product(model: cp_model.CpModel, first: cp_model.IntVar, second: cp_model.IntVar, score: float) -> cp_model.IntVar:
    both = model.new_bool_var("")
    if score < 0:
        model.add_implication(both, first)
        model.add_implication(both, second)
    else:
        model.add_bool_or([~first, ~second, both])
    return both
