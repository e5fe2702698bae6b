"""The solvers of `search.py`, ours and others, each from arrays to a choice, and the clocks they run by."""

import importlib
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
from ortools.math_opt.python import mathopt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from blockwright.search.arrays import Arrays
from blockwright.search.general import Structure, find_with_structure
from blockwright.search.problem import Problem
from blockwright.search.solve import Feasible, Optimal, columns_of, solve

pulp: Any = importlib.import_module("pulp")  # of the extra [bench], which the type checker may not find

EXACT = ["increment 1e-12"]
"""CBC by default looks for nothing that is better by less than 1e-5 (its `increment`), so that what it calls optimal
may be worse by as much. Given where objectives are compared; not where a single solve is timed."""

Record = dict[str, Any]
LIMIT_S = 60.0
"""For one solve, where nothing else is said."""
T = TypeVar("T")


def cpu_s() -> float:
    """CPU seconds of this process and of those it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(run: Callable[[], T]) -> tuple[T, Record]:
    """What it gives, and its seconds."""
    started, cpu_started = time.perf_counter(), cpu_s()
    given = run()
    return given, {"wall_s": time.perf_counter() - started, "cpu_s": cpu_s() - cpu_started}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a solver ended with."""

    columns_G: np.ndarray | None
    status: str
    is_proven: bool
    build_s: float = 0.0
    """Seconds of the wall clock, of all, until the solver was called."""


def judged(arrays: Arrays, given: Given) -> Record:
    """What a solver ended with, summed anew: score, and excess over the limits as a share of them."""
    record: Record = {"status": given.status, "is_proven": given.is_proven, "build_s": given.build_s, "score": None}
    if given.columns_G is not None:
        excess_R = arrays.costs_CR[given.columns_G].sum(axis=0) / arrays.room_R - 1
        record |= {"score": float(arrays.scores_C[given.columns_G].sum()), "excess": float(excess_R.max())}
    return record


def ours(problem: Problem, time_limit_s: float) -> Given:
    """`solve`."""
    answer = solve(problem, time_limit_s)
    chosen = columns_of(problem, answer.chosen) if isinstance(answer, Optimal | Feasible) else None
    return Given(columns_G=chosen, status=type(answer).__name__, is_proven=isinstance(answer, Optimal))


class Cbc:
    """CBC by PuLP, which writes a file and starts CBC on it."""

    def __init__(self, arrays: Arrays) -> None:
        self.model = pulp.LpProblem("search", pulp.LpMinimize)
        self.x = [pulp.LpVariable(f"x{c}", cat="Binary") for c in range(len(arrays.scores_C))]
        self.model += pulp.LpAffineExpression(zip(self.x, arrays.scores_C.tolist(), strict=True))
        for columns in np.split(np.arange(len(self.x)), arrays.starts_G[1:]):
            self.model += pulp.lpSum([self.x[c] for c in columns]) == 1
        for row, room in enumerate(arrays.room_R.tolist()):
            costs = zip(self.x, arrays.costs_CR[:, row].tolist(), strict=True)
            self.model.addConstraint(pulp.LpAffineExpression(costs) <= room, f"row{row}")

    def solve(self, time_limit_s: float, options: Sequence[str] = (), gap: float | None = None) -> Given:
        """Solves it; an absolute gap that will do, or none."""
        started = time.perf_counter()
        self.model.solve(
            pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=0, gapAbs=gap, options=list(options))
        )
        is_late = time.perf_counter() - started >= time_limit_s
        has_found = self.model.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
        taken = np.array([c for c, x in enumerate(self.x) if (x.value() or 0) > 0.5]) if has_found else None
        status = pulp.LpSolution[self.model.sol_status]
        is_proven = self.model.sol_status == pulp.LpSolutionOptimal and not is_late
        return Given(columns_G=taken, status=status + (", at the time limit" if is_late else ""), is_proven=is_proven)

    def exclude(self, columns_G: np.ndarray, layers_differ: int) -> None:
        """Further choices differ from this one in so many layers."""
        self.model += pulp.lpSum([self.x[c] for c in columns_G]) <= len(columns_G) - layers_differ

    def move(self, row: int, room: float) -> None:
        """Moves a limit."""
        self.model.constraints[f"row{row}"].changeRHS(room)


def by_cbc(arrays: Arrays, time_limit_s: float, options: Sequence[str] = ()) -> Given:
    """CBC by PuLP, building included."""
    started = time.perf_counter()
    cbc = Cbc(arrays)
    build_s = time.perf_counter() - started
    return replace(cbc.solve(time_limit_s, options), build_s=build_s)


def by_highs(arrays: Arrays, time_limit_s: float) -> Given:
    """HiGHS by SciPy."""
    started = time.perf_counter()
    count = len(arrays.scores_C)
    once = csr_matrix((np.ones(count), (arrays.group_C, np.arange(count))), shape=(arrays.num_groups, count))
    room_R: Any = arrays.room_R  # SciPy's types know single numbers only
    rows = [LinearConstraint(once, 1, 1), LinearConstraint(csr_matrix(arrays.costs_CR.T), -np.inf, room_R)]
    build_s = time.perf_counter() - started
    found = milp(
        arrays.scores_C,
        constraints=rows,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0, "time_limit": time_limit_s},
    )
    taken = None if found.x is None else np.flatnonzero(found.x > 0.5)
    return Given(columns_G=taken, status=f"status {found.status}", is_proven=found.status == 0, build_s=build_s)


def by_mathopt(solver: mathopt.SolverType, arrays: Arrays, time_limit_s: float) -> Given:
    """A solver of OR-Tools' MathOpt; threads are not set, which HiGHS does not bear."""
    started = time.perf_counter()
    model = mathopt.Model()
    x = [model.add_binary_variable() for _ in arrays.scores_C]
    for columns in np.split(np.arange(len(x)), arrays.starts_G[1:]):
        model.add_linear_constraint(mathopt.fast_sum(x[c] for c in columns) == 1)
    for costs_C, room in zip(arrays.costs_CR.T.tolist(), arrays.room_R.tolist(), strict=True):
        model.add_linear_constraint(mathopt.fast_sum(a * v for a, v in zip(costs_C, x, strict=True)) <= room)
    model.minimize(mathopt.fast_sum(s * v for s, v in zip(arrays.scores_C.tolist(), x, strict=True)))
    build_s = time.perf_counter() - started
    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=time_limit_s), relative_gap_tolerance=0, absolute_gap_tolerance=0
    )
    try:
        found = mathopt.solve(model, solver, params=parameters)
    except AttributeError as error:  # how ortools 9.15 reports any error of a solver
        return Given(columns_G=None, status=f"error: {error}", is_proven=False, build_s=build_s)
    taken = np.flatnonzero(np.array(found.variable_values(x)) > 0.5) if found.has_primal_feasible_solution() else None
    reason = found.termination.reason
    is_proven = reason == mathopt.TerminationReason.OPTIMAL
    return Given(columns_G=taken, status=reason.name.lower(), is_proven=is_proven, build_s=build_s)


def by_cp_sat(arrays: Arrays, time_limit_s: float) -> Given:
    """CP-SAT with one worker, in whole numbers as `general.py` puts it."""
    nothing = Structure(
        pairs=(), shape_C=np.zeros(len(arrays.scores_C), dtype=int), most_shapes=None, is_contiguous=False
    )
    deadline = time.monotonic() + time_limit_s
    found = find_with_structure(
        arrays.scaled()[0], nothing, deadline=deadline, tolerance=0.0, accept=lambda columns_G: True
    )
    is_proven = found.columns_G is not None and found.bound >= found.score
    return Given(columns_G=found.columns_G, status="optimal" if is_proven else "not proven", is_proven=is_proven)
