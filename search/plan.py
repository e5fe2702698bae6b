"""The plan: which blocks, what they are promised to cost, and how good that choice is known to be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
class Axis:
    """A quantity at a load on a device, in its base unit."""

    quantity: Quantity
    device: str
    load: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierAxes:
    """What the frontier lies between, and where the plan stands there."""

    along: Axis
    """The quantity whose limit moves."""
    against: Axis | None
    """What is best at each limit; None for the sum of scores."""
    most_score: float | None
    """The most that the scores of a point may sum to, where one was asked for."""
    plan_along: float
    """Of the plan's child, at the end of the promise's interval that budgets hold at."""
    plan_against: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The best at one limit of the quantity that the frontier goes along, the budgets on others kept."""

    limit: float
    spent: float
    """At the end of the promise's interval that budgets hold at."""
    score: float
    """Of this point's child, whatever the frontier is against."""
    bound: float
    """Nothing better on the other axis is within the limit."""
    against: float | None = None
    """What the child costs on the other axis; None where that is the score."""

    @property
    def value(self) -> float:
        """On the axis that the frontier is against."""
        return self.score if self.against is None else self.against

    @property
    def is_proven(self) -> bool:
        """Whether it is known to be the best."""
        return self.bound == self.value

    @property
    def gap(self) -> float:
        """How much better it might at most be, as a share."""
        return _gap(self.value, self.bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """Another good child within the budgets."""

    child: Model
    score: float
    bound: float
    """No other child that differs as much from those before it has a lower score."""
    layers_differ: int
    """Layers in which it differs from the plan's child."""

    @property
    def is_proven(self) -> bool:
        """Whether it is known to be the best of those that differ as much from those before it."""
        return self.bound == self.score

    @property
    def gap(self) -> float:
        """How much better one might at most be, as a share of the score."""
        return _gap(self.score, self.bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A load that a device's profile does not tell of."""

    device: str
    load: str
    reason: str


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
    """Of this plan: KL(parent ‖ child) in nats per token, before distillation, on windows that chose neither this plan
    nor any other, and that no score was taken from."""
    best_sum_kl: Estimate
    """Of the plan with the best sum of scores, on the same windows."""
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
    frontier_axes: FrontierAxes | None = None
    """None where no frontier was asked for, or the plan is older than they."""
    absent: tuple[Absent, ...] = ()
    """Loads of other devices' at which a device was not measured: there is no promise then."""
    shortfalls: tuple[str, ...] = ()
    """Where the pool or the frontier has less than was asked for, in sentences."""
    notes: tuple[str, ...] = ()
    """What the choice was made from, where that is not what an order says of itself, in sentences: candidates that an
    engine leaves out, scores of another format."""
    tolerance: float = 0.0
    """The search was asked to stop this near to the best sum of scores."""

    @property
    def device(self) -> str:
        """The device that a run measures on."""
        return next(iter(self.devices))

    @property
    def is_within_tolerance(self) -> bool:
        """Whether it is unproven for the tolerance asked for, and not for want of time."""
        return self.status == "feasible" and self.score - self.bound <= self.tolerance * (1 + 1e-9)

    @property
    def gap(self) -> float:
        """How much better a choice might at most be, as a share of the score; 0 where the plan is proven optimal."""
        return 0.0 if self.status == "optimal" else _gap(self.score, self.bound)


def _gap(value: float, bound: float) -> float:
    return abs(value - bound) / abs(value) if value else 0.0


def write_plan(plan: Plan, path: Path) -> None:
    """Writes a plan, whole or not at all."""
    data = to_data(plan) | {"gap": plan.gap}
    for field, many in (("frontier", plan.frontier), ("pool", plan.pool)):
        for row, each in zip(data[field], many, strict=True):
            row |= {"gap": each.gap, "is_proven": each.is_proven}
    write_json(path, data)


def read_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        InputError: there is none, or it is broken.
    """
    data = read_json(path)
    if isinstance(data, dict):
        if data.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema_version",
                got=data.get("schema_version"),
                expected=str(SCHEMA_VERSION),
                remedy="Search again: the plan is of another version of Blockwright, or no plan.",
            )
        data = _without_derived(data)
    return from_data(Plan, data, str(path))


def _without_derived(data: dict[str, Any]) -> dict[str, Any]:
    """The data of the fields alone, without what `write_plan` adds for readers of the file."""
    kept = {key: value for key, value in data.items() if key != "gap"}
    for field in ("frontier", "pool"):
        if isinstance(rows := kept.get(field), list):
            kept[field] = [
                {key: value for key, value in row.items() if key not in ("gap", "is_proven")}
                if isinstance(row, dict)
                else row
                for row in rows
            ]
    return kept
