"""The plan: which blocks, what they are promised to cost, and how good that choice is known to be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blockwright.cost import Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.profile import Backend
from blockwright.spec import Model
from blockwright.statistics import Estimate
from blockwright.strict import from_data, to_data

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What one quantity will cost at one load."""

    quantity: Quantity
    device: str
    load: str
    parent: Cost
    child: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLine:
    """One end of a budget, and how much of it the plan uses."""

    text: str
    quantity: Quantity
    device: str
    load: str
    limit: float
    """In the quantity's base unit."""
    is_least: bool
    """Whether the cost must be at least the limit."""
    share: float | None
    """The limit as a share of the parent's promised cost, where it was given so."""
    spent: float
    """At the end of the promise's interval that is nearer to the limit: budgets hold there."""
    is_binding: bool
    """Whether a better score would be possible without it, all others kept."""
    price: float
    """Score per base unit of the limit, from the linear relaxation; 0 where it does not press."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The best sum of scores at one limit of the budget that the frontier goes along, the others kept."""

    limit: float
    spent: float
    """At the upper end of the promise's interval."""
    score: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """Another good child within the budgets."""

    child: Model
    score: float
    bound: float
    layers_differ: int
    """Layers in which it differs from the plan's child."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """What a simpler way to choose finds within the same budgets."""

    name: str
    score: float | None
    """Its sum of scores, as the plan's; None where it finds nothing."""
    child: Model | None
    reason: str
    """Why it finds nothing; empty where it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What plans were measured to lose as wholes, by `blockwright refine`."""

    kl: Estimate
    """Of this plan: KL(parent ‖ child) in nats per token, before distillation, on text that no score was taken from."""
    best_sum_kl: Estimate
    """Of the plan with the best sum of scores."""
    plans_measured: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A child that was chosen, with its certificate."""

    schema_version: Literal[2]
    status: Literal["optimal", "feasible"]
    parent: Model
    child: Model
    score: float
    """Sum of the scores of the chosen candidates."""
    bound: float
    """No choice within the budgets has a lower sum."""
    metric: str
    """What the scores are."""
    profile: str
    """Name of the first device's hardware profile: the one that a run measures on."""
    devices: dict[str, str]
    """Each device's hardware profile, by the device's name; the first is the one that a run measures on."""
    backend: Backend
    format: str
    """The format of all layers, or ``mixed``."""
    loads: dict[str, Load]
    """With the batch that was decided on for the first device."""
    batches: dict[str, int]
    """The batches that were decided on, by load and device: ``batch of serve on h200``."""
    promises: tuple[Promise, ...]
    budgets: tuple[BudgetLine, ...]
    frontier: tuple[FrontierPoint, ...]
    pool: tuple[PoolPlan, ...]
    """The plan's own child first; empty where no pool was asked for."""
    rivals: tuple[Rival, ...] = ()
    """Empty where no comparison was asked for."""
    whole: Whole | None = None
    """Where the plan was chosen by measuring whole children."""

    @property
    def device(self) -> str:
        """The device that a run measures on."""
        return next(iter(self.devices))

    @property
    def gap(self) -> float:
        """How much better a choice might at most be, as a share of the score; 0 where the plan is proven optimal."""
        return 0.0 if self.status == "optimal" or self.score == 0 else (self.score - self.bound) / abs(self.score)


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
        if data.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema_version",
                got=data.get("schema_version"),
                expected=str(SCHEMA_VERSION),
                remedy="Search again: the plan is of another version of Blockwright, or no plan.",
            )
    return from_data(Plan, data, str(path))
