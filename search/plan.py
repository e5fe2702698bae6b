"""The plan: which blocks, what they are promised to cost, and how good that choice is known to be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blockwright.cost import Cost, Load, Quantity
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.profile import Backend
from blockwright.spec import Model
from blockwright.strict import from_data, to_data

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What one quantity will cost at one load."""

    quantity: Quantity
    load: str
    parent: Cost
    child: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLine:
    """A budget, and how much of it the plan uses."""

    text: str
    quantity: Quantity
    load: str
    limit: float
    share: float | None
    """The limit as a share of the parent's promised cost, where it was given so."""
    spent: float
    """At the upper end of the promise's interval: budgets hold there."""
    is_binding: bool
    """Whether a better score would be possible without it, all others kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The best sum of scores at one limit of the first budget, the others kept."""

    limit: float
    spent: float
    """At the upper end of the promise's interval."""
    score: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A child that was chosen, with its certificate."""

    schema_version: Literal[1]
    status: Literal["optimal", "feasible"]
    parent: Model
    child: Model
    score: float
    """Sum of the scores of the chosen candidates."""
    bound: float
    """No choice within the budgets has a lower sum."""
    profile: str
    """Name of the hardware profile that the promises rest on."""
    backend: Backend
    format: str
    loads: dict[str, Load]
    promises: tuple[Promise, ...]
    budgets: tuple[BudgetLine, ...]
    frontier: tuple[FrontierPoint, ...]

    @property
    def gap(self) -> float:
        """How much better a choice might at most be, as a share of the score; 0 where the plan is proven optimal."""
        return 0.0 if self.status == "optimal" or self.score == 0 else (self.score - self.bound) / self.score


def write_plan(plan: Plan, path: Path) -> None:
    """Writes a plan, whole or not at all."""
    write_json(path, to_data(plan) | {"gap": plan.gap})


def read_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        InputError: there is none, or it is broken.
    """
    data = read_json(path)
    if isinstance(data, dict):
        data.pop("gap", None)
    return from_data(Plan, data, str(path))
