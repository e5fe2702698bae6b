"""How well a profile foretold what was measured afterwards: pairs of a promise and a measurement become a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from blockwright.cost import Cost, Quantity
from blockwright.hw_profiles.provenance import AccuracyRow, Phase

PHASE_OF: dict[Quantity, Phase] = {
    "time_per_token": "decode",
    "time_to_first_token": "prefill",
    "memory": "both",
}
"""Which phase a quantity that is tried belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One promise and what came of it."""

    quantity: Quantity
    format: str
    foretold: Cost
    measured: float
    """In the quantity's unit, above 0."""
    parent_off: float = 0.0
    """How far off the parent was, which was measured in turn with it, as a share of what it was measured to take: what
    the machine has changed since it was profiled, and no fault of the sum."""


def accuracy_of(trials: Sequence[Trial]) -> tuple[AccuracyRow, ...]:
    """A row for every quantity and format, in the order in which they first appear."""
    groups: dict[tuple[Quantity, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.quantity, trial.format), []).append(trial)
    return tuple(_row(quantity, weights, group) for (quantity, weights), group in groups.items())


def _row(quantity: Quantity, weights: str, trials: Sequence[Trial]) -> AccuracyRow:
    foretold = np.array([trial.foretold.value for trial in trials])
    measured = np.array([trial.measured for trial in trials])
    errors = foretold / measured - 1
    sizes = np.abs(errors)
    covered = [trial.foretold.low <= trial.measured <= trial.foretold.high for trial in trials]
    return AccuracyRow(
        quantity=quantity,
        format=weights,
        phase=PHASE_OF[quantity],
        num_held_out=len(trials),
        mean_error=float(sizes.mean()),
        median_error=float(np.median(sizes)),
        p90_error=float(np.quantile(sizes, 0.9)),
        worst_error=float(sizes.max()),
        bias=float(errors.mean()),
        kendall_tau=_tau(foretold, measured),
        interval_coverage=float(np.mean(covered)),
    )


def _tau(foretold: np.ndarray, measured: np.ndarray) -> float | None:
    """Kendall's tau-b; None where one side has no order at all, as a single pair has none."""
    if len(set(foretold)) < 2 or len(set(measured)) < 2:
        return None
    return float(np.asarray(kendalltau(foretold, measured))[0])
