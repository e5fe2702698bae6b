"""Stage: choose the blocks. Loads no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockwright.cost import Load
from blockwright.files import digest_of, digest_of_files
from blockwright.hw_profiles.profile import Backend, Profile, read_profile
from blockwright.pipeline.stage import Stage, running
from blockwright.search.budget import parse_budget
from blockwright.search.choose import Order, choose
from blockwright.search.plan import Plan, read_plan, write_plan
from blockwright.search.scores import Score, ScoreTable, read_scores
from blockwright.spec import Candidate, Model, parse_format
from blockwright.statistics import Estimate
from blockwright.strict import to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOrder:
    """What to choose for."""

    loads: dict[str, Load]
    budgets: tuple[str, ...]
    format: str
    backend: Backend
    time_limit_s: float
    frontier_points: int


def search_plan(scores: Path, profile: str | Path, order: SearchOrder, output: Path) -> Plan:
    """Chooses the child, or reads the plan that was made before from the same inputs."""
    hardware = read_profile(profile)
    inputs = {"order": to_data(order), "scores": digest_of_files([scores]) if scores.exists() else None}
    stage = Stage(name="search", output=output, inputs=inputs | {"profile": digest_of(to_data(hardware))})
    if (before := stage.reuse(lambda: read_plan(output))) is not None:
        return before
    table = read_scores(scores)
    with running(stage):
        plan = choose(table, _order(order, hardware, order.frontier_points))
        write_plan(plan, output)
    return plan


def check_reachable(parent: Model, offered: Sequence[Candidate], hardware: Profile, order: SearchOrder) -> None:
    """Finds out whether any child is within the budgets, before its library is trained.

    Raises:
        InputError: none is; the error says which budget cannot be met and the least that can be reached.
    """
    nothing = Estimate(value=0.0, low=0.0, high=0.0, num_values=1)
    scores = tuple(Score(candidate=candidate, metric="none", estimate=nothing) for candidate in offered)
    choose(ScoreTable(parent=parent, scores=scores), _order(order, hardware, frontier_points=0))


def check_budgets(loads: dict[str, Load], budgets: Sequence[str]) -> None:
    """Reads budgets and drops them, so that a mistake is found before hours of work and not after.

    Raises:
        InputError: one of them is no budget.
    """
    for text in budgets:
        parse_budget(text, loads)


def _order(order: SearchOrder, hardware: Profile, frontier_points: int) -> Order:
    return Order(
        profile=hardware,
        backend=order.backend,
        weights=parse_format(order.format),
        loads=order.loads,
        budgets=[parse_budget(text, order.loads) for text in order.budgets],
        time_limit_s=order.time_limit_s,
        frontier_points=frontier_points,
    )
