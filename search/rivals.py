"""Every simpler way to choose, on one problem: what the plan is worth shows beside them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from blockwright.search.baselines import (
    Chosen,
    block_influence,
    equal_per_layer,
    greedy,
    homogeneous,
    max_parameters,
    random_feasible,
    uniform,
)
from blockwright.search.problem import Problem, merged, score_of
from blockwright.spec import Model

NUM_WAYS = 7
"""How many simpler ways to choose there are."""
_DRAWS = 16
"""Random choices of which the best counts."""
_NONE_FOUND = "finds no choice within the budgets"
_NOTHING_TO_REMOVE = "the library offers no layer to remove"
_NOT_MEASURED = "influence was not measured: score again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one way found."""

    name: str
    chosen: Chosen | None
    """A choice per group of the problem."""
    reason: str = ""
    """Why there is none."""


def attempts(
    problem: Problem, parent: Model, influence: Sequence[float] | None, time_limit_s: float = 60.0
) -> Iterator[Attempt]:
    """What each simpler way to choose finds.

    Args:
        problem: what to choose from.
        parent: the library's.
        influence: of each layer; None where it was not measured.
        time_limit_s: seconds for each solve; of those ways that need one.
    """
    ways: list[tuple[str, Callable[[], Chosen | None]]] = [
        ("uniform width", lambda: uniform(problem)),
        ("greedy", lambda: greedy(problem)),
        ("equal slices per layer", lambda: equal_per_layer(problem)),
        ("most parameters", lambda: max_parameters(problem, parent, time_limit_s)),
        (f"best of {_DRAWS} random", lambda: _best_random(problem)),
    ]
    for name, choose in ways:
        yield _attempt(name, choose())
    yield _block_influence(problem, parent, influence)
    yield _attempt("homogeneous (Minitron)", homogeneous(problem, time_limit_s))


def _attempt(name: str, chosen: Chosen | None) -> Attempt:
    return Attempt(name=name, chosen=chosen, reason="" if chosen is not None else _NONE_FOUND)


def _best_random(problem: Problem) -> Chosen | None:
    drawn = random_feasible(problem, _DRAWS, seed=0)
    return min(drawn, key=lambda chosen: score_of(problem, chosen), default=None)


def _block_influence(problem: Problem, parent: Model, influence: Sequence[float] | None) -> Attempt:
    name = "block influence (ShortGPT)"
    if influence is None:
        return Attempt(name=name, chosen=None, reason=_NOT_MEASURED)
    chosen = block_influence(problem, parent, influence)
    is_any_removable = any(choice.is_removed for group in merged(problem).groups for choice in group)
    if chosen is None and not is_any_removable:
        return Attempt(name=name, chosen=None, reason=_NOTHING_TO_REMOVE)
    return _attempt(name, chosen)
