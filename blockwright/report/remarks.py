"""What stands below the table of promises: how the child did on trial, and how the machine has drifted since."""

from collections.abc import Sequence

from blockwright.cost import UNIT_OF
from blockwright.hw_profiles.tried import TriedChild
from blockwright.measured import Measured
from blockwright.report.facts import QUANTITY_NAMES, measured_promises, show
from blockwright.search.plan import Plan

_NOTABLE_DRIFT = 0.05


def drift_words(plan: Plan, measured: Measured) -> list[str]:
    """Where the machine itself was not what it was when it was profiled, in sentences.

    The parent runs in turn with the child, so how far the parent is off is the machine's share of the error.
    """
    sentences: list[str] = []
    for promise in measured_promises(plan):
        cost = measured.cost(plan.format, promise.quantity, promise.load)
        drift = cost.parent.value / promise.parent.value
        if UNIT_OF[promise.quantity] == "s" and abs(drift - 1) > _NOTABLE_DRIFT:
            beside_parent = cost.child.value / promise.child.value / drift
            took, profiled = (show(c.value, promise.quantity) for c in (cost.parent, promise.parent))
            sentences.append(
                f"{QUANTITY_NAMES[promise.quantity]} ({promise.load}): the machine was "
                f"{'slower' if drift > 1 else 'faster'} than when it was profiled, the parent taking {took} instead "
                f"of {profiled}; beside the parent the child is off by {100 * (beside_parent - 1):+.1f} %."
            )
    return sentences


def trial_words(plan: Plan, tried: Sequence[TriedChild]) -> list[str]:
    """What the child, with random weights, took beside its parent before it was trained, in sentences."""
    sentences: list[str] = []
    for one in tried:
        names = [name for name, load in plan.loads.items() if load == one.load]
        if one.child != plan.child or not names:
            continue
        told = [
            f"{QUANTITY_NAMES[quantity].lower()} {100 * share.median:.1f} % "
            f"({100 * share.low:.1f} to {100 * share.high:.1f})"
            for quantity, share in one.shares.items()
        ]
        sentences.append(
            f"Tried before it was trained ({names[0]}, {one.time_per_token.num_processes} processes), the child took "
            f"of the parent's {', '.join(told)}."
        )
    return sentences
