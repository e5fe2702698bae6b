"""What tables, page and plot say of frontiers and pools: axes with their units, and how far answers are proven."""

from blockwright.report.facts import QUANTITY_NAMES, show
from blockwright.search.plan import Axis, FrontierPoint, Plan, PoolPlan
from blockwright.units import format_score


def axis_name(axis: Axis | None, metric: str) -> str:
    """What stands along an axis, with its unit where the numbers do not carry it: ``Memory at chat``."""
    if axis is not None:
        return f"{QUANTITY_NAMES[axis.quantity].lower()} at {axis.load}"
    unit = {"kl": " (KL, nats per token)", "lm_loss": " (loss, nats per token)"}.get(metric, f" ({metric})")
    return f"sum of scores{unit}"


def axis_value(value: float, axis: Axis | None) -> str:
    """A number on an axis with its unit."""
    return format_score(value) if axis is None else show(value, axis.quantity)


def gap_words(one: PoolPlan | FrontierPoint) -> str:
    """``proven``, or how far from the best it can at most be."""
    return "proven" if one.is_proven else f"at most {100 * one.gap:.2g} % from the best"


def frontier_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The frontier's heading and a row for each point, the score beside costs where neither axis is that."""
    axes = plan.frontier_axes
    if axes is None:
        return []
    names = [axis_name(axes.along, plan.metric), axis_name(axes.against, plan.metric)]
    beside = axes.against is not None
    rows = [(*names, *([axis_name(None, plan.metric)] if beside else []), "status")]
    for point in plan.frontier:
        ends = (axis_value(point.spent, axes.along), axis_value(point.value, axes.against))
        rows.append((*ends, *([axis_value(point.score, None)] if beside else []), gap_words(point)))
    return rows


def frontier_status(plan: Plan) -> str:
    """How many points of the frontier are not proven, to go on in a sentence; empty where all are."""
    unproven = [point for point in plan.frontier if not point.is_proven]
    if not unproven:
        return ""
    widest = 100 * max(point.gap for point in unproven)
    return f" ({len(unproven)} of {len(plan.frontier)} not proven, at most {widest:.2g} % from the best)"
