"""The frontier that is asked for beside a plan: between any two quantities, or a quantity and the score."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from blockwright.cost import Load, Quantity
from blockwright.errors import InputError
from blockwright.search.budget import Amount, Budget, parse_budget
from blockwright.search.build import Order, build_problem
from blockwright.search.frontier import Point, frontier, with_score_limit
from blockwright.search.plan import Axis, FrontierAxes, FrontierPoint
from blockwright.search.problem import Choice, Problem, score_of, spent
from blockwright.search.scores import ScoreTable
from blockwright.spec import Candidate

_OPEN = Amount(value=math.inf, share=None)
_ALONG, _AGAINST = "the frontier's first axis", "the frontier's second axis"
_NEAR = 1e-3
"""Of what choices can change of a cost: so near the least will do where the proof takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a frontier is to lie between."""

    along: Axis
    against: Axis | None
    """None for the score."""
    most_score: float | None = None
    """The most that scores may sum to, where it is against a cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A frontier, and where the plan's child stands in it."""

    axes: FrontierAxes
    points: tuple[FrontierPoint, ...]
    is_complete: bool
    """Whether time was enough for every point."""
    tolerance: float = 0.0
    """That was asked for, where the frontier is against the score."""

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """Says so where time was too short, or there is nothing."""
        if not self.is_complete:
            return ("The frontier is not all proven, or has gaps: the time limit came first.",)
        if unproven := sum(not point.is_proven for point in self.points):
            return (f"Of the frontier's {len(self.points)} points {unproven} are not proven: {self._reason}.",)
        bounded = "" if self.axes.most_score is None else " and the bound on the score"
        return () if self.points else (f"The frontier has no point: nothing is within the other budgets{bounded}.",)

    @property
    def _reason(self) -> str:
        if self.axes.against is None:
            return f"they lie within the tolerance of {self.tolerance:g} asked for"
        return (
            "the proof takes long where layers cost alike, so they are had to a thousandth of what choices can change"
        )


def read_axis(
    text: str, budgets: Sequence[Budget], loads: Mapping[str, Load], devices: Sequence[str], field: str
) -> Axis:
    """Reads ``memory@chat``, or a budget by its text.

    Raises:
        InputError: it names no quantity at a load on a device.
    """
    budget = next((budget for budget in budgets if budget.text == text), None)
    if budget is None:
        try:
            budget = parse_budget(f"{text} <= 100%", loads, devices)  # one grammar for where a quantity is had
        except InputError as error:
            raise InputError(
                field,
                got=repr(text),
                expected="a quantity at a load, such as memory@chat, or the text of one of the budgets: "
                + error.expected,
                remedy="Write quantity@LOAD, or quantity@DEVICE:LOAD where there are several devices.",
            ) from error
    return Axis(quantity=budget.quantity, device=budget.device, load=budget.load)


def default_sweep(order: Order) -> Sweep | None:
    """Along the first budget from above, against the score; none where there is no such budget."""
    above = (b for b in order.budgets if b.most is not None and b.quantity != "throughput")
    first = next(above, None)
    if first is None:
        return None
    along = Axis(quantity=first.quantity, device=first.device, load=first.load)
    return Sweep(along=along, against=None)


def sweep_frontier(
    table: ScoreTable,
    order: Order,
    sweep: Sweep,
    chosen: Sequence[Candidate],
    on_point: Callable[[], None],
) -> Swept:
    """The frontier between two quantities, the budgets on others kept.

    Args:
        table: the scores.
        order: what the plan was made for; so many points of it.
        sweep: what it lies between. Where the proof takes long, a cost is minimised to a thousandth of what choices can
            change of it.
        chosen: the plan's candidates.
        on_point: called after each point.

    Raises:
        InputError: a batch is to be decided on, which a frontier cannot lie between.
    """
    problem = build_problem(table, _with_axes(order, sweep))
    _check_decisions(problem)
    _check_score(problem, sweep)
    texts = [limit.text for limit in problem.limits]
    along, value = texts.index(_ALONG), texts.index(_AGAINST) if sweep.against else None
    bounded = problem if sweep.most_score is None else with_score_limit(problem, sweep.most_score)
    ended: list[bool] = []
    points = frontier(
        bounded,
        along,
        order.frontier_points,
        value=value,
        tolerance=order.tolerance if value is None else 0.0,
        near=0.0 if value is None else _NEAR * _spread(problem, value),
        time_limit_s=order.time_limit_s,
        on_point=on_point,
        on_end=ended.append,
    )
    own = _chosen_of(problem, chosen)
    costs, told = spent(problem, own), _Told(order=order)
    score = score_of(problem, own)
    axes = FrontierAxes(
        along=sweep.along,
        against=sweep.against,
        most_score=sweep.most_score,
        plan_along=told.cost(sweep.along, costs[along]),
        plan_against=score if value is None or sweep.against is None else told.cost(sweep.against, costs[value]),
    )
    return Swept(
        axes=axes,
        points=tuple(_told_point(point, problem, sweep, told) for point in points),
        is_complete=all(ended),
        tolerance=order.tolerance,
    )


def _check_decisions(problem: Problem) -> None:
    """Refuses a batch that is to be decided on."""
    if problem.decisions:
        raise InputError(
            "--along",
            got="loads with several batches, among them " + ", ".join(problem.decisions),
            expected="one batch for each load that a budget or the frontier is about",
            remedy="Give --load one batch, or leave the frontier out: --frontier 0.",
        )


def _check_score(problem: Problem, sweep: Sweep) -> None:
    """Refuses a bound on the score that no child keeps, whatever it costs."""
    least = sum(min(choice.score for choice in group) for group in problem.groups)
    if sweep.most_score is not None and sweep.most_score < least:
        raise InputError(
            "--most-score",
            got=sweep.most_score,
            expected=f"at least {least:.4g}: no child's scores sum to less",
            remedy="Raise the bound.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """Costs as they are told: a throughput, which latencies are solved for, in tokens per second."""

    order: Order

    def cost(self, axis: Axis, cost: float) -> float:
        if axis.quantity != "throughput":
            return cost
        (load,) = self.order.loads[axis.load]
        if cost <= 0:
            raise InputError(
                f"frontier: throughput@{axis.load}",
                got=f"a request latency of {cost:.3g} s",
                expected="one above 0",
                remedy="Profile this load: it is too far from what was measured.",
            )
        return load.batch * load.new_tokens / cost


def _told_point(point: Point, problem: Problem, sweep: Sweep, told: _Told) -> FrontierPoint:
    against = sweep.against
    is_score = against is None
    score = score_of(problem, _chosen_of(problem, [c for choice in point.chosen for c in choice.candidates]))
    return FrontierPoint(
        limit=told.cost(sweep.along, point.limit),
        spent=told.cost(sweep.along, point.spent),
        score=point.value if is_score else score,
        bound=point.bound if is_score else told.cost(against, point.bound),
        against=None if is_score else told.cost(against, point.value),
    )


def _with_axes(order: Order, sweep: Sweep) -> Order:
    """The order with the axes as budgets that allow everything, and without what bounds the first one."""
    budgets = [left for budget in order.budgets if (left := _unbounded(budget, sweep.along)) is not None]
    budgets.append(_axis_budget(_ALONG, sweep.along))
    if sweep.against is not None:
        budgets.append(_axis_budget(_AGAINST, sweep.against))
    return replace(order, budgets=budgets)


def _unbounded(budget: Budget, axis: Axis) -> Budget | None:
    """What a budget asks for beside the bound that the frontier moves."""
    if (budget.quantity, budget.device, budget.load) != (axis.quantity, axis.device, axis.load):
        return budget
    moved, kept = ("least", budget.most) if axis.quantity == "throughput" else ("most", budget.least)
    return None if kept is None else replace(budget, **{moved: None})


def _axis_budget(text: str, axis: Axis) -> Budget:
    quantity: Quantity = "request_latency" if axis.quantity == "throughput" else axis.quantity
    return Budget(text=text, quantity=quantity, device=axis.device, load=axis.load, least=None, most=_OPEN)


def _chosen_of(problem: Problem, candidates: Sequence[Candidate]) -> tuple[Choice, ...]:
    """The problem's choices of these candidates."""
    taken = set(candidates)
    return tuple(next(c for c in group if taken.issuperset(c.candidates)) for group in problem.groups)


def _spread(problem: Problem, index: int) -> float:
    costs = [[choice.costs[index] for choice in group] for group in problem.groups]
    return sum(max(group) - min(group) for group in costs)
