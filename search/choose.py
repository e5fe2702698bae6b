"""From scores, a profile and budgets to a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from blockwright.cost import UNIT_OF, Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, Profile
from blockwright.profiler.cost_model import PartCosts, all_part_costs, part_costs
from blockwright.search.budget import Budget
from blockwright.search.plan import SCHEMA_VERSION, BudgetLine, FrontierPoint, Plan, Promise
from blockwright.search.scores import ScoreTable
from blockwright.search.solve import Choice, Feasible, Infeasible, Limit, NothingFound, Optimal, Problem, solve, spent
from blockwright.spec import (
    Attention,
    Candidate,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    stored_as,
    with_candidate,
    with_format,
)
from blockwright.units import format_quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for."""

    profile: Profile
    backend: Backend
    weights: Format
    loads: Mapping[str, Load]
    budgets: Sequence[Budget]
    time_limit_s: float
    frontier_points: int


def choose(table: ScoreTable, order: Order) -> Plan:
    """Finds the best child within the budgets.

    Raises:
        InputError: a cost or score is missing, or no child is within the budgets; the error says which budget
            cannot be met and the least that can be reached.
    """
    parent = with_format(table.parent, order.weights)
    costs = [part_costs(order.profile, parent, order.loads[b.load], b.quantity, order.backend) for b in order.budgets]
    problem = build_problem(table, order, costs)
    answer = solve(problem, order.time_limit_s)
    match answer:
        case Optimal() | Feasible():
            return _plan_of(answer, problem, table, order)
        case Infeasible():
            raise _infeasible_error(answer, problem, order)
        case NothingFound():
            raise InputError(
                "time limit",
                got=f"{order.time_limit_s} s and nothing found",
                expected="enough time to find a first plan",
                remedy="Raise the time limit, or loosen a budget.",
            )


def build_problem(table: ScoreTable, order: Order, costs: Sequence[PartCosts]) -> Problem:
    """The problem in the solver's words: a group of choices for each layer's mixers and ffns.

    A choice costs the upper end of its interval, so that budgets hold there too.
    """
    parent = with_format(table.parent, order.weights)
    parent_costs = [cost.of_model(parent) for cost in costs]
    by_group: dict[tuple[int, str], list[Choice]] = {}
    for score in table.scores:
        candidate = replace(score.candidate, variant=stored_as(score.candidate.variant, order.weights))
        choice = Choice(
            candidate=candidate,
            score=max(0.0, score.estimate.value),
            costs=tuple(_cost_of(cost, candidate).high for cost in costs),
        )
        by_group.setdefault((candidate.layer, candidate.part), []).append(choice)
    limits = tuple(
        Limit(text=budget.text, fixed=cost.fixed.high, limit=budget.limit_for(parent_cost))
        for budget, cost, parent_cost in zip(order.budgets, costs, parent_costs, strict=True)
    )
    return Problem(groups=tuple(tuple(group) for _, group in sorted(by_group.items())), limits=limits)


def child_of(parent: Model, candidates: Sequence[Candidate]) -> Model:
    """The parent with the candidates in place."""
    return reduce(with_candidate, candidates, parent)


def frontier(problem: Problem, points: int, time_limit_s: float) -> list[FrontierPoint]:
    """The best score at evenly spaced limits of the first budget, from the least that is reachable to no limit."""
    first = problem.limits[0]
    least = first.fixed + sum(min(c.costs[0] for c in group) for group in problem.groups)
    most = first.fixed + sum(min(group, key=lambda c: c.score).costs[0] for group in problem.groups)
    found: list[FrontierPoint] = []
    for limit in np.linspace(least, max(most, first.limit), points):
        moved = replace(problem, limits=(replace(first, limit=float(limit)), *problem.limits[1:]))
        answer = solve(moved, time_limit_s)
        if isinstance(answer, Optimal | Feasible):
            cost = spent(moved, answer.chosen)[0]
            found.append(FrontierPoint(limit=float(limit), spent=cost, score=answer.score, bound=answer.bound))
    return found


def _plan_of(answer: Optimal | Feasible, problem: Problem, table: ScoreTable, order: Order) -> Plan:
    parent = with_format(table.parent, order.weights)
    child = child_of(parent, [choice.candidate for choice in answer.chosen])
    promises = [
        Promise(quantity=quantity, load=name, parent=costs.of_model(parent), child=costs.of_model(child))
        for name, load in order.loads.items()
        for quantity, costs in all_part_costs(order.profile, parent, load, order.backend).items()
    ]
    lines = [
        BudgetLine(
            text=limit.text,
            quantity=budget.quantity,
            load=budget.load,
            limit=limit.limit,
            share=budget.share,
            spent=cost,
            is_binding=_is_binding(problem, index, answer, order.time_limit_s),
        )
        for index, (limit, budget, cost) in enumerate(
            zip(problem.limits, order.budgets, spent(problem, answer.chosen), strict=True)
        )
    ]
    return Plan(
        schema_version=SCHEMA_VERSION,
        status="optimal" if isinstance(answer, Optimal) else "feasible",
        parent=parent,
        child=child,
        score=answer.score,
        bound=answer.bound,
        profile=order.profile.name,
        backend=order.backend,
        format=str(order.weights),
        loads=dict(order.loads),
        promises=tuple(promises),
        budgets=tuple(lines),
        frontier=tuple(frontier(problem, order.frontier_points, order.time_limit_s)) if problem.limits else (),
    )


def _is_binding(problem: Problem, index: int, answer: Optimal | Feasible, time_limit_s: float) -> bool:
    limits = problem.limits[:index] + problem.limits[index + 1 :]
    groups = tuple(
        tuple(replace(c, costs=c.costs[:index] + c.costs[index + 1 :]) for c in group) for group in problem.groups
    )
    freed = solve(Problem(groups=groups, limits=limits), time_limit_s)
    return isinstance(freed, Optimal | Feasible) and freed.score < answer.score * (1 - 1e-9)


def _infeasible_error(answer: Infeasible, problem: Problem, order: Order) -> InputError:
    out_of_reach = [
        f"{limit.text}: allows {_text(limit.limit, budget.quantity)}, "
        f"the least that any child costs is {_text(least, budget.quantity)}"
        for limit, budget, least in zip(problem.limits, order.budgets, answer.reachable, strict=True)
        if least > limit.most
    ]
    together = "each alone can be met, but not all together: " + "; ".join(limit.text for limit in problem.limits)
    return InputError(
        "budgets",
        got="; ".join(out_of_reach) or together,
        expected="budgets that some child of this library meets",
        remedy="Loosen the budget named here, or offer cheaper candidates in the space.",
    )


def _text(value: float, quantity: Quantity) -> str:
    return format_quantity(value, UNIT_OF[quantity])


def _cost_of(costs: PartCosts, candidate: Candidate) -> Cost:
    match candidate.variant:
        case Attention() | LinearMixer() as mixer:
            return costs.of_mixer(mixer)
        case GatedFFN() | LinearFFN() as ffn:
            return costs.of_ffn(ffn)
        case NoOp() as nothing:
            return costs.of_mixer(nothing) if candidate.part == "mixer" else costs.of_ffn(nothing)
