"""How a profile came about and how far it can be trusted: method, coverage, and tried accuracy."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from blockwright.cost import Quantity

Phase = Literal["prefill", "decode", "both"]
Clock = Literal["thread_cpu", "wall", "device"]
StopReason = Literal["precision", "time", "no_gain"]
STOP_REASONS: tuple[StopReason, ...] = get_args(StopReason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How times were taken."""

    clock: Clock
    """The thread's own, which stands still while another program has the core; the wall's; or the accelerator's."""
    warm_up: str
    """What ran unrecorded before each sample."""
    outlier_rule: str
    """Which samples were thrown away."""
    seconds: float
    """What one measurement was meant to take."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError("seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of what was asked for was measured."""

    status: Literal["complete", "partial"]
    asked: int
    """Measurements: a part's time, a set of whole models, the memory of a load, one operator."""
    done: int
    failed: int
    started: str | None
    """UTC, ISO 8601; None where it was not kept."""
    ended: str
    wall_s: float | None
    """From start to end, what lay between a kill and going on included."""
    failures: tuple[str, ...] = ()
    """What failed, and why."""
    disturbed: int = 0
    """Measurements that were never undisturbed: the clock had dropped or others were at work, each time."""
    stopped_by: str | None = None
    """Why no more was measured: ``precision`` was reached, the ``time`` was up, or more was ``no_gain``; None where
    everything was measured just once."""
    precision: float | None = None
    """How well a typical whole model's time is known from this, as a share of it, at the point that is known worst."""
    marked: tuple[str, ...] = ()
    """Rows not to be relied on, and why: the clock was held down meanwhile, or they are faster than the ceilings."""

    def __post_init__(self) -> None:
        if min(self.asked, self.done, self.failed) < 0 or self.done + self.failed > self.asked:
            raise ValueError("done + failed <= asked, none of them below 0")
        if (self.status == "complete") != (self.done == self.asked):
            raise ValueError("complete where all that was asked for is done, partial where it is not")
        if self.wall_s is not None and not 0 <= self.wall_s < math.inf:
            raise ValueError("wall_s of at least 0")
        if self.stopped_by not in (None, *STOP_REASONS):
            raise ValueError("stopped_by one of " + ", ".join(STOP_REASONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """How well whole models or operators that nothing was fitted on were foretold. Errors are relative."""

    quantity: Quantity
    format: str
    phase: Phase
    num_held_out: int
    mean_error: float
    """Of the errors' absolute values, as the next three."""
    median_error: float
    p90_error: float
    worst_error: float
    bias: float
    """The mean error with its sign: above 0 where more was foretold than measured."""
    kendall_tau: float | None
    """Whether the order is right, -1 to 1; None where there are fewer than two."""
    interval_coverage: float
    """The share of measurements that lay within the interval foretold."""

    def __post_init__(self) -> None:
        errors = (self.mean_error, self.median_error, self.p90_error)
        if self.num_held_out < 1 or not all(0 <= error <= self.worst_error < math.inf for error in errors):
            raise ValueError("at least one held out, and errors from 0 to the worst one")
        if not (abs(self.bias) <= self.mean_error * (1 + 1e-9) and 0 <= self.interval_coverage <= 1):
            raise ValueError("a bias no larger than the mean error and a coverage from 0 to 1")
        if self.kendall_tau is not None and not -1 <= self.kendall_tau <= 1:
            raise ValueError("a kendall_tau from -1 to 1")
