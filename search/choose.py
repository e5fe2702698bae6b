"""From scores, profiles and budgets to a plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from blockwright.errors import InputError
from blockwright.search.blame import blame
from blockwright.search.budget import Amount, Budget
from blockwright.search.build import Order, build_problem
from blockwright.search.explain import Clash, explain_clash, is_binding, is_shut_by_rules, prices
from blockwright.search.left_out import left_out_words
from blockwright.search.offered import lent_words, offered
from blockwright.search.plan import SCHEMA_VERSION, BudgetLine, Plan, PoolPlan, Rival
from blockwright.search.pool import pool
from blockwright.search.problem import Choice, Limit, Problem, holds, score_of, spent
from blockwright.search.promises import decided_loads, promises_of
from blockwright.search.rivals import attempts
from blockwright.search.scores import ScoreTable
from blockwright.search.solve import Answer, Feasible, Infeasible, NothingFound, Optimal, solve
from blockwright.search.sweep import Sweep, Swept, default_sweep, sweep_frontier
from blockwright.search.words import clash_words, in_own_units, inverse_texts
from blockwright.spec import Candidate, Model, format_of_model, with_candidate, with_format
from blockwright.strict import to_data

_EXPLAIN_S = 30.0
"""To find out why there is no plan."""


class InfeasibleError(InputError):
    """No child is within the budgets."""

    def __init__(self, clash: Clash, words: Sequence[str]) -> None:
        loosen = "Loosen what is named here" + (", or leave out a rule" if clash.rules else "")
        super().__init__(
            "budgets",
            got="; ".join(words),
            expected="budgets that some child of this library meets",
            remedy=f"{loosen}, or offer cheaper candidates in the space.",
        )
        self.clash = clash

    def to_data(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return {"status": "infeasible"} | to_data(self.clash)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What to call while a plan is made."""

    on_point: Callable[[], None] = lambda: None
    """After each point of the frontier."""
    on_found: Callable[[], None] = lambda: None
    """After each plan of the pool."""
    on_rival: Callable[[], None] = lambda: None
    """After each simpler way to choose."""


def choose(table: ScoreTable, order: Order, steps: Steps | None = None, sweep: Sweep | None = None) -> Plan:
    """Finds the best child within the budgets.

    Args:
        table: the scores.
        order: what to choose for.
        steps: what to call in between.
        sweep: what the frontier lies between; None for the first budget from above, where there is one, and the score.

    Raises:
        InfeasibleError: no child is within the budgets; it says which clash, what can be reached and what would fit.
        InputError: a cost or score is missing, or there was no time to find a plan.
    """
    problem = build_problem(table, order)
    answer, steps = answer_of(problem, order, table), steps or Steps()
    if sweep is None:
        return plan_of(answer, problem, table, order, steps)
    swept = sweep_frontier(table, order, sweep, candidates_of(answer.chosen), steps.on_point)
    plan = plan_of(answer, problem, table, replace(order, frontier_points=0), steps)
    shortfalls = (*plan.shortfalls, *swept.shortfalls)
    return replace(plan, frontier=swept.points, frontier_axes=swept.axes, shortfalls=shortfalls)


def answer_of(problem: Problem, order: Order, table: ScoreTable) -> Optimal | Feasible:
    """The best choice of a problem that was built from an order and a table.

    Raises:
        InfeasibleError: there is none.
        InputError: there was no time to find one.
    """
    return checked(solve(problem, order.time_limit_s, order.tolerance), problem, order, table)


def checked(answer: Answer, problem: Problem, order: Order, table: ScoreTable) -> Optimal | Feasible:
    """The answer where it is a choice; the problem is built from the order and the table.

    Raises:
        InfeasibleError: there is none.
        InputError: there was no time to find one.
    """
    match answer:
        case Optimal() | Feasible():
            return answer
        case Infeasible():
            if is_shut_by_rules(problem, _EXPLAIN_S):
                found = blame(table, replace(order, budgets=()), _EXPLAIN_S)
                raise InputError(
                    "rules",
                    got="; ".join(["no child that keeps all of them, whatever the budgets", *found.words]),
                    expected="rules that some child of this library keeps",
                    remedy="Ask for more shapes, drop --contiguous, or change what is forbidden, forced or kept.",
                )
            clash = in_own_units(explain_clash(problem, _EXPLAIN_S, inverse_texts(order)), order)
            found = blame(table, order, _EXPLAIN_S)
            raise InfeasibleError(replace(clash, rules=found.enough), [*clash_words(clash, order), *found.words])
        case NothingFound():
            raise InputError(
                "time limit",
                got=f"{order.time_limit_s} s and nothing found",
                expected="enough time to find a first plan",
                remedy="Raise the time limit, or loosen a budget.",
            )


def child_of(parent: Model, candidates: Sequence[Candidate]) -> Model:
    """The parent with the candidates in place."""
    return reduce(with_candidate, candidates, parent)


def candidates_of(chosen: Sequence[Choice]) -> list[Candidate]:
    """All candidates of a choice."""
    return [candidate for choice in chosen for candidate in choice.candidates]


def plan_of(answer: Optimal | Feasible, problem: Problem, table: ScoreTable, order: Order, steps: Steps) -> Plan:
    """The plan behind an answer, with what it costs, what binds, its frontier and its pool."""
    parent = with_format(table.parent, order.formats[0])
    child = child_of(parent, candidates_of(answer.chosen))
    first = next(iter(order.devices))
    told = promises_of(parent, child, order, answer.decided)
    swept = _default_frontier(answer, problem, table, order, steps)
    pooled, is_complete = _pool(answer, problem, parent, order, steps) if order.pool_size > 1 else ([], True)
    return Plan(
        schema_version=SCHEMA_VERSION,
        status="optimal" if isinstance(answer, Optimal) else "feasible",
        parent=parent,
        child=child,
        score=answer.score,
        bound=answer.bound,
        metric=order.metric,
        profile=order.devices[first].name,
        devices={name: profile.name for name, profile in order.devices.items()},
        backend=order.backend,
        format=format_of_model(child),
        loads=decided_loads(order, first, answer.decided),
        batches={name: int(batch) for name, batch in answer.decided.items()},
        promises=told.promises,
        budgets=tuple(_lines(answer, problem, order)),
        frontier=swept.points if swept else (),
        pool=tuple(pooled),
        rivals=tuple(_rivals(problem, parent, table, order, steps)) if order.compares else (),
        frontier_axes=swept.axes if swept else None,
        absent=told.absent,
        tolerance=order.tolerance,
        shortfalls=(*_pool_shortfalls(len(pooled), order, is_complete), *(swept.shortfalls if swept else ())),
        notes=tuple(_notes(table, parent, order)),
    )


def _notes(table: ScoreTable, parent: Model, order: Order) -> list[str]:
    candidates = [candidate for candidate, _ in offered(table, order.metric, order.formats)]
    return [
        *lent_words(table, order.metric, order.formats),
        *left_out_words(candidates, parent, order.rules.servable_by),
    ]


def _lines(answer: Optimal | Feasible, problem: Problem, order: Order) -> list[BudgetLine]:
    """The limits that hold, in the quantities that budgets were written in."""
    costs, worth = spent(problem, answer.chosen), prices(problem, answer.decided)
    budgets = {budget.text: budget for budget in order.budgets}
    lines = []
    for index, limit in enumerate(problem.limits):
        budget = budgets.get(limit.text)
        if budget is None or not holds(limit, answer.decided):
            continue
        amount = _amount_of(budget, limit)
        load = decided_loads(order, budget.device, answer.decided)[budget.load]
        ends, price, is_least = (limit.limit, costs[index]), worth[index], limit.is_least
        if budget.quantity == "throughput":
            tokens = load.batch * load.new_tokens
            price *= limit.limit**2 / tokens  # dt = t²/tokens · dT
            ends, is_least = (tokens / ends[0], tokens / ends[1]), not is_least
        lines.append(
            BudgetLine(
                text=budget.text,
                quantity=budget.quantity,
                device=budget.device,
                load=budget.load,
                limit=ends[0],
                is_least=is_least,
                share=None if amount is None else amount.share,
                spent=ends[1],
                is_binding=is_binding(problem, index, answer, order.time_limit_s),
                price=price,
            )
        )
    return lines


def _amount_of(budget: Budget, limit: Limit) -> Amount | None:
    is_from_below = limit.is_least != (budget.quantity == "throughput")
    return budget.least if is_from_below else budget.most


def _default_frontier(
    answer: Optimal | Feasible, problem: Problem, table: ScoreTable, order: Order, steps: Steps
) -> Swept | None:
    """Along the first budget from above; none where there is none, or batches are to be decided."""
    sweep = default_sweep(order)
    if sweep is None or problem.decisions or not order.frontier_points:
        return None
    return sweep_frontier(table, order, sweep, candidates_of(answer.chosen), steps.on_point)


def _pool(
    answer: Optimal | Feasible, problem: Problem, parent: Model, order: Order, steps: Steps
) -> tuple[list[PoolPlan], bool]:
    """The plans, and whether time was enough for all."""
    ended: list[bool] = []
    answers = pool(
        problem,
        order.pool_size,
        order.min_layers_differ,
        time_limit_s=order.time_limit_s,
        tolerance=order.tolerance,
        first=answer,
        on_found=lambda answer: steps.on_found(),
        on_end=ended.append,
    )
    found, child = [], child_of(parent, candidates_of(answer.chosen))
    for answer in answers:
        other = child_of(parent, candidates_of(answer.chosen))
        differ = sum(a != b for a, b in zip(other.layers, child.layers, strict=True))
        found.append(PoolPlan(child=other, score=answer.score, bound=answer.bound, layers_differ=differ))
    return found, all(ended)


def _pool_shortfalls(num_found: int, order: Order, is_complete: bool) -> list[str]:
    has = f"The pool has {num_found} of {order.pool_size} plans"
    if not is_complete:
        return [f"{has}, not all of them proven the best of their turn: the time limit came first."]
    if order.pool_size > 1 and num_found < order.pool_size:
        return [f"{has}: no other child within the budgets differs in {order.min_layers_differ} layers."]
    return []


def _rivals(problem: Problem, parent: Model, table: ScoreTable, order: Order, steps: Steps) -> list[Rival]:
    found = []
    for attempt in attempts(problem, parent, table.influence, order.time_limit_s):
        score = child = None
        if attempt.chosen is not None:
            score = score_of(problem, attempt.chosen)
            child = child_of(parent, candidates_of(attempt.chosen))
        found.append(Rival(name=attempt.name, score=score, child=child, reason=attempt.reason))
        steps.on_rival()
    return found
