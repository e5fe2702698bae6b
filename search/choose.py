"""From scores, profiles and budgets to a plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from blockwright.cost import UNIT_OF, Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.profiler.cost_model import all_part_costs, throughput_of
from blockwright.search.budget import Amount, Budget
from blockwright.search.build import Order, build_problem, decision_of
from blockwright.search.explain import Clash, explain_clash, is_binding, is_shut_by_rules, prices
from blockwright.search.frontier import frontier
from blockwright.search.plan import SCHEMA_VERSION, BudgetLine, FrontierPoint, Plan, PoolPlan, Promise, Rival
from blockwright.search.pool import pool
from blockwright.search.problem import Choice, Limit, Problem, holds, score_of, spent
from blockwright.search.rivals import attempts
from blockwright.search.scores import ScoreTable
from blockwright.search.solve import Answer, Feasible, Infeasible, NothingFound, Optimal, solve
from blockwright.spec import Candidate, Model, format_of_model, with_candidate, with_format
from blockwright.strict import to_data
from blockwright.units import format_quantity

_EXPLAIN_S = 30.0
"""To find out why there is no plan."""


class InfeasibleError(InputError):
    """No child is within the budgets."""

    def __init__(self, clash: Clash, words: Sequence[str]) -> None:
        super().__init__(
            "budgets",
            got="; ".join(words),
            expected="budgets that some child of this library meets",
            remedy="Loosen what is named here, or offer cheaper candidates in the space.",
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


def choose(table: ScoreTable, order: Order, steps: Steps | None = None) -> Plan:
    """Finds the best child within the budgets.

    Raises:
        InfeasibleError: no child is within the budgets; it says which clash, what can be reached and what would fit.
        InputError: a cost or score is missing, or there was no time to find a plan.
    """
    problem = build_problem(table, order)
    answer = answer_of(problem, order)
    return plan_of(answer, problem, table, order, steps or Steps())


def answer_of(problem: Problem, order: Order) -> Optimal | Feasible:
    """The best choice.

    Raises:
        InfeasibleError: there is none.
        InputError: there was no time to find one.
    """
    return checked(solve(problem, order.time_limit_s, order.tolerance), problem, order)


def checked(answer: Answer, problem: Problem, order: Order) -> Optimal | Feasible:
    """The answer where it is a choice.

    Raises:
        InfeasibleError: there is none.
        InputError: there was no time to find one.
    """
    match answer:
        case Optimal() | Feasible():
            return answer
        case Infeasible():
            if is_shut_by_rules(problem, _EXPLAIN_S):
                raise InputError(
                    "rules",
                    got="no child that keeps all of them, whatever the budgets",
                    expected="rules that some child of this library keeps",
                    remedy="Ask for more shapes, drop --contiguous, or change what is forbidden, forced or kept.",
                )
            clash = explain_clash(problem, _EXPLAIN_S)
            raise InfeasibleError(clash, clash_words(clash, order))
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
    loads = {device: decided_loads(order, device, answer.decided) for device in order.devices}
    first = next(iter(order.devices))
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
        loads=loads[first],
        batches={name: int(batch) for name, batch in answer.decided.items()},
        promises=tuple(p for device in order.devices for p in _promises(parent, child, device, loads[device], order)),
        budgets=tuple(_lines(answer, problem, order, table.parent)),
        frontier=tuple(_frontier(problem, order, steps)),
        pool=tuple(_pool(answer, problem, parent, order, steps)) if order.pool_size > 1 else (),
        rivals=tuple(_rivals(problem, parent, table, order, steps)) if order.compares else (),
    )


def decided_loads(order: Order, device: str, decided: Mapping[str, str]) -> dict[str, Load]:
    """Each load with the batch decided on; where nothing hangs on it, the first."""
    found = {}
    for name, loads in order.loads.items():
        batch = decided.get(decision_of(name, device))
        found[name] = next((load for load in loads if str(load.batch) == batch), loads[0])
    return found


def clash_words(clash: Clash, order: Order) -> list[str]:
    """Why there is no plan, in sentences."""
    budgets = {budget.text: budget for budget in order.budgets}

    def show(text: str, limit: float) -> str:
        return _text(limit, budgets[text]) if text in budgets else f"{limit:.4g}"

    words = []
    for move in clash.moves:
        is_short = move.alone < move.limit if move.is_least else move.alone > move.limit
        if is_short:
            end = "most" if move.is_least else "least"
            words.append(
                f"{move.text}: {'asks for' if move.is_least else 'allows'} {show(move.text, move.limit)}, the {end} "
                f"that any child costs is {show(move.text, move.alone)}"
            )
    if not words:
        together = clash.clashing or tuple(move.text for move in clash.moves)
        words.append("each alone can be met, but not all together: " + "; ".join(together))
    for move in clash.moves:
        if move.needed is not None and move.text in (clash.clashing or (move.text,)):
            words.append(f"with the others kept, {move.text} would have to be {show(move.text, move.needed)}")
    if clash.loosening is not None:
        words.append(f"all of them loosened by {100 * clash.loosening:.2g} % would fit")
    return words


def _text(value: float, budget: Budget) -> str:
    quantity: Quantity = "request_latency" if budget.quantity == "throughput" else budget.quantity
    return format_quantity(value, UNIT_OF[quantity])


def _promises(parent: Model, child: Model, device: str, loads: Mapping[str, Load], order: Order) -> list[Promise]:
    """What runs measure, and what budgets are about."""
    found: dict[tuple[Quantity, str], Promise] = {}
    for name, load in loads.items():
        asked: list[Quantity] = [b.quantity for b in order.budgets if (b.device, b.load) == (device, name)]
        try:
            known = all_part_costs(
                order.devices[device],
                parent,
                load,
                order.backend,
                formats=order.formats,
                may_extrapolate=order.may_extrapolate,
            )
        except InputError:
            if asked or len(order.devices) == 1:
                raise
            continue  # a load of another device's: nothing hangs on it here, and the profile need not tell
        wanted: list[Quantity] = list(dict.fromkeys([*known, *asked]))
        for quantity in wanted:
            additive: Quantity = "request_latency" if quantity == "throughput" else quantity
            costs = known.get(additive) or order.costs(parent, device, load, additive)
            before, after = costs.of_model(parent), costs.of_model(child)
            if quantity == "throughput":
                before, after = (_throughput(load, cost, f"{device}:{name}") for cost in (before, after))
            found[quantity, name] = Promise(quantity=quantity, device=device, load=name, parent=before, child=after)
    return list(found.values())


def _throughput(load: Load, latency: Cost, place: str) -> Cost:
    if latency.low <= 0:
        raise InputError(
            f"throughput@{place}",
            got=f"a request latency of {latency.low:.3g} to {latency.high:.3g} s",
            expected="an interval above 0, for a throughput to have an upper end",
            remedy="Profile this load: it is too far from what was measured.",
        )
    return throughput_of(load, latency)


def _lines(answer: Optimal | Feasible, problem: Problem, order: Order, parent: Model) -> list[BudgetLine]:
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


def _frontier(problem: Problem, order: Order, steps: Steps) -> list[FrontierPoint]:
    """Along the first budget from above; none where there is none, or batches are to be decided."""
    above = {budget.text for budget in order.budgets if budget.quantity != "throughput"}  # that one is put as a latency
    limits = enumerate(problem.limits)
    along = next((i for i, limit in limits if not limit.is_least and limit.text in above), None)
    if along is None or problem.decisions or not order.frontier_points:
        return []
    points = frontier(
        problem,
        along,
        order.frontier_points,
        tolerance=order.tolerance,
        time_limit_s=order.time_limit_s,
        on_point=steps.on_point,
    )
    return [FrontierPoint(limit=p.limit, spent=p.spent, score=p.value, bound=p.bound) for p in points]


def _pool(answer: Optimal | Feasible, problem: Problem, parent: Model, order: Order, steps: Steps) -> list[PoolPlan]:
    answers = pool(
        problem,
        order.pool_size,
        order.min_layers_differ,
        time_limit_s=order.time_limit_s,
        tolerance=order.tolerance,
        first=answer,
        on_found=lambda answer: steps.on_found(),
    )
    found, child = [], child_of(parent, candidates_of(answer.chosen))
    for answer in answers:
        other = child_of(parent, candidates_of(answer.chosen))
        differ = sum(a != b for a, b in zip(other.layers, child.layers, strict=True))
        found.append(PoolPlan(child=other, score=answer.score, bound=answer.bound, layers_differ=differ))
    return found


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
