"""Which rules stand in the way: by trying what is possible without each of them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from blockwright.errors import InputError
from blockwright.search.build import NO_RULES, Order, Rules, build_problem
from blockwright.search.explain import fits
from blockwright.search.scores import ScoreTable
from blockwright.search.solve import Feasible, Infeasible, Optimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """What leaving out rules would help."""

    enough: tuple[str, ...]
    """Rules any one of which, left out, lets some child meet the rest."""
    all_would_help: bool | None
    """Whether some child meets the budgets without any rule; None where there are none, or time was too short."""

    @property
    def words(self) -> list[str]:
        """What was found, in sentences."""
        if self.enough:
            return [f"without {' or without '.join(self.enough)} some child would do"]
        if self.all_would_help:
            return ["without the rules some child would do, but to leave out any one of them is not known to be enough"]
        return [] if self.all_would_help is None else ["without the rules no child would do either"]


def blame(table: ScoreTable, order: Order, time_limit_s: float) -> Blame:
    """Tries an order that no child meets without its rules, then without each of them."""
    deadline = time.monotonic() + time_limit_s
    parts = list(_parts(order.rules))
    if not parts:
        return Blame(enough=(), all_would_help=None)
    helps = _is_met(table, replace(order, rules=NO_RULES), deadline, len(parts) + 1)
    if not helps:
        return Blame(enough=(), all_would_help=helps)
    enough = tuple(
        name
        for place, (name, rules) in enumerate(parts)
        if _is_met(table, replace(order, rules=rules), deadline, len(parts) - place)
    )
    return Blame(enough=enough, all_would_help=True)


def _is_met(table: ScoreTable, order: Order, deadline: float, num_left: int) -> bool | None:
    """Whether some child meets an order; None where that was not found out in a share of the time left."""
    try:
        problem = build_problem(table, order)
    except InputError:  # the other rules leave a layer nothing to choose from
        return False
    answer = fits(problem, max(0.0, deadline - time.monotonic()) / num_left)
    if isinstance(answer, Optimal | Feasible):
        return True
    return False if isinstance(answer, Infeasible) else None


def _parts(rules: Rules) -> Iterator[tuple[str, Rules]]:
    """Every rule as it is written, and the others without it."""
    for engine in rules.servable_by:
        others = tuple(other for other in rules.servable_by if other != engine)
        yield f"--servable-by {engine}", replace(rules, servable_by=others)
    if rules.most_shapes is not None:
        yield f"--shapes {rules.most_shapes}", replace(rules, most_shapes=None)
    if rules.removes_contiguously:
        yield "--contiguous", replace(rules, removes_contiguously=False)
    if rules.keep_first:
        yield f"--keep-first {rules.keep_first}", replace(rules, keep_first=0)
    if rules.keep_last:
        yield f"--keep-last {rules.keep_last}", replace(rules, keep_last=0)
    for pattern in rules.forbidden:
        yield f"--forbid {pattern}", replace(rules, forbidden=tuple(p for p in rules.forbidden if p != pattern))
    for pattern in rules.forced:
        yield f"--force {pattern}", replace(rules, forced=tuple(p for p in rules.forced if p != pattern))
