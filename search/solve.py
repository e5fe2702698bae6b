"""Exactly one mixer and one ffn in every layer, the least sum of scores, within every budget.

Data
    groups g = 1 … 2L      the mixers of each layer, and the ffns of each layer
    choices c ∈ g          with score s_c ≥ 0 and, for every budget b, cost a_bc ≥ 0
    f_b, l_b               what the model costs apart from its layers, and the limit

Variables
    x_c ∈ {0, 1}           whether choice c is taken

Objective
    minimise  Σ_c s_c · x_c

Constraints
    (1)  Σ_{c ∈ g} x_c = 1                   for every group g
    (2)  f_b + Σ_c a_bc · x_c ≤ l_b + ε      for every budget b, ε = 10^-9 · l_b

Without ε a budget of 100 % would shut out the parent itself, for the last digits of a sum depend on its order.
CP-SAT works in whole numbers: scores and costs are scaled so that the largest sum of scores and the room for
each cost become 10^12. Costs are rounded up, by less than ε in all, so every plan within the budgets is considered
and none exceeds one by more than ε. Sums of the plan are taken again in floating point. The reported bound allows
for the rounding of scores.
"""

import math
from dataclasses import dataclass

from ortools.sat.python import cp_model

from blockwright.errors import InputError
from blockwright.spec import Candidate

_SCALE = 10**12
_SLACK = 1e-9
"""ε as a share of a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One candidate, what it loses, and what it costs under each budget."""

    candidate: Candidate
    score: float
    costs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One budget: what is spent in any case, and what may be spent in all."""

    text: str
    fixed: float
    limit: float

    @property
    def most(self) -> float:
        """What a sum in floating point may come to and still count as within the limit: l_b + ε."""
        return self.limit * (1 + _SLACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to choose from, and within what."""

    groups: tuple[tuple[Choice, ...], ...]
    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        for group in self.groups:
            for choice in group:
                numbers = (choice.score, *choice.costs)
                if not all(math.isfinite(number) and number >= 0 for number in numbers):
                    raise InputError(
                        f"layer {choice.candidate.layer}, {choice.candidate.part}, {choice.candidate.name}",
                        got=f"score {choice.score}, costs {choice.costs}",
                        expected="finite numbers that are not negative",
                        remedy="Score or profile this candidate again.",
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimal:
    """The best choice there is, proven."""

    chosen: tuple[Choice, ...]
    score: float
    bound: float
    """No choice within the budgets has a lower score than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasible:
    """A choice within the budgets that the time limit left unproven."""

    chosen: tuple[Choice, ...]
    score: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """No choice is within all budgets."""

    reachable: tuple[float, ...]
    """For each budget the least that any choice costs, the other budgets left aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingFound:
    """The time limit passed before a choice was found or excluded."""


Answer = Optimal | Feasible | Infeasible | NothingFound


def solve(problem: Problem, time_limit_s: float = 60.0) -> Answer:
    """Solves the problem.

    Args:
        problem: what to choose from.
        time_limit_s: seconds after which the best choice so far is given as `Feasible`.
    """
    reachable = tuple(_least_costs(problem))
    if any(least > limit.most for least, limit in zip(reachable, problem.limits, strict=True)):
        return Infeasible(reachable=reachable)
    score_unit = sum(max(c.score for c in group) for group in problem.groups) / _SCALE or 1.0 / _SCALE
    model = cp_model.CpModel()
    taken = [[model.new_bool_var("") for _ in group] for group in problem.groups]
    for group in taken:
        model.add_exactly_one(group)  # (1)
    for index, limit in enumerate(problem.limits):
        weights = [[_share_of(c.costs[index], limit) for c in group] for group in problem.groups]
        model.add(_weighted_sum(taken, weights) <= _SCALE)  # (2)
    model.minimize(_weighted_sum(taken, [[round(c.score / score_unit) for c in group] for group in problem.groups]))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # the same plan every time; no slower than two on problems of this size
    solver.parameters.random_seed = 0
    solver.parameters.max_time_in_seconds = time_limit_s
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Infeasible(reachable=reachable)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return NothingFound()
    chosen = tuple(
        choice
        for group, variables in zip(problem.groups, taken, strict=True)
        for choice, variable in zip(group, variables, strict=True)
        if solver.boolean_value(variable)
    )
    score = sum(choice.score for choice in chosen)
    rounding = 0.5 * len(problem.groups) * score_unit
    bound = min(score, solver.best_objective_bound * score_unit - rounding)
    return (Optimal if status == cp_model.OPTIMAL else Feasible)(chosen=chosen, score=score, bound=max(0.0, bound))


def spent(problem: Problem, chosen: tuple[Choice, ...]) -> list[float]:
    """What a choice costs under each budget."""
    return [limit.fixed + sum(c.costs[i] for c in chosen) for i, limit in enumerate(problem.limits)]


def is_within(problem: Problem, chosen: tuple[Choice, ...]) -> bool:
    """Whether a choice is within every budget."""
    return all(cost <= limit.most for cost, limit in zip(spent(problem, chosen), problem.limits, strict=True))


def _least_costs(problem: Problem) -> list[float]:
    return [
        limit.fixed + sum(min(choice.costs[index] for choice in group) for group in problem.groups)
        for index, limit in enumerate(problem.limits)
    ]


def _share_of(cost: float, limit: Limit) -> int:
    """A cost in units of the room for it / 10^12, rounded up; whatever exceeds the room alone is just too much."""
    capacity = limit.most - limit.fixed
    if cost == 0:
        return 0
    return math.ceil(cost / capacity * _SCALE) if cost <= capacity else _SCALE + 1


def _weighted_sum(taken: list[list[cp_model.IntVar]], weights: list[list[int]]) -> cp_model.LinearExprT:
    variables = [variable for group in taken for variable in group]
    return cp_model.LinearExpr.weighted_sum(variables, [weight for group in weights for weight in group])
