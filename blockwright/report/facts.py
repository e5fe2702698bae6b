"""What the page says, as plain text and numbers: everything is formatted here and only laid out in the template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from blockwright.cost import MEASURED_QUANTITIES, UNIT_OF, Cost, Quantity
from blockwright.measured import Measured, MeasuredCost, Quality
from blockwright.search.plan import BudgetLine, Plan, Promise
from blockwright.servable import engine_obstacles
from blockwright.spec import FFN, Attention, Block, GatedFFN, LinearFFN, LinearMixer, Mixer, NoOp
from blockwright.statistics import Estimate
from blockwright.units import format_quantity, format_score

RIVALS_CAPTION = (
    "Sums of scores, which add up what each block alone was measured to lose; whole models were not measured for this."
)

QUANTITY_NAMES: dict[Quantity, str] = {
    "time_per_token": "Time per token",
    "time_to_first_token": "Time to first token",
    "request_latency": "Request latency",
    "throughput": "Throughput",
    "energy": "Energy",
    "memory": "Memory",
    "disk": "Disk",
    "parameters": "Parameters",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """One quantity at one load: asked, promised and measured."""

    name: str
    load: str
    asked: str
    """The budget's limit; empty where there is none."""
    parent: str
    parent_promised: str
    """What the profile says of the parent: how far that is off shows how the machine has drifted since."""
    promised: str
    promised_interval: str
    measured: str
    measured_interval: str
    off: str
    """How far the measurement lies from the promise."""
    of_parent: str
    """The child's measurement as a share of the parent's."""
    of_parent_promised: str
    is_met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPicture:
    """A mixer or ffn as a bar."""

    label: str
    kind: str
    """``own``, ``narrow``, ``linear`` or ``none``."""
    percent: float
    """How much of the parent's part is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPicture:
    """One layer: what its mixer and its ffn became."""

    index: int
    mixer: PartPicture
    ffn: PartPicture


def show(value: float, quantity: Quantity, is_binary: bool = False) -> str:
    """A quantity with its unit."""
    return format_quantity(value, UNIT_OF[quantity], is_binary)


def cost_lines(plan: Plan, measured: Measured) -> list[CostLine]:
    """All promises beside their measurements, those with a budget first."""
    lines = [_cost_line(p, measured.cost(plan.format, p.quantity, p.load), plan) for p in measured_promises(plan)]
    return sorted(lines, key=lambda line: not line.asked)


def measured_promises(plan: Plan) -> list[Promise]:
    """The promises that a run measures: those about its own device, of what can be measured there."""
    return [p for p in plan.promises if p.device == plan.device and p.quantity in MEASURED_QUANTITIES]


def budget_words(lines: Sequence[BudgetLine]) -> str:
    """``≤ 60 %``, ``≥ 100 tok/s``; both ends of a range."""
    return ", ".join(f"{'≥' if line.is_least else '≤'} {_limit(line)}" for line in lines)


def price_words(plan: Plan) -> list[str]:
    """What each budget that presses is worth, in sentences."""
    sentences = []
    for line in plan.budgets:
        if line.price > 0:
            step = _round_step(line)
            sentences.append(
                f"{line.text}: {show(step, line.quantity)} {'less' if line.is_least else 'more'} would be worth about "
                f"{line.price * step:.3g} of the score{'' if line.is_binding else ', as far as shares of blocks go'}."
            )
    return sentences


def _round_step(line: BudgetLine) -> float:
    """A tenth of a limit, cut to a power of ten."""
    return 10.0 ** math.floor(math.log10(abs(line.limit) / 10)) if line.limit else 1.0


def absent_words(plan: Plan) -> list[str]:
    """What is not promised because a profile does not tell, in sentences."""
    return [f"No promise for {absent.load} on {absent.device}: {absent.reason}." for absent in plan.absent]


def rival_rows(plan: Plan) -> list[dict[str, str]]:
    """The plan and every simpler way to choose: its sum of scores, and how many times the plan's that is."""
    rows = [{"name": "the plan", "score": format_score(plan.score), "times": ""}]
    for rival in plan.rivals:
        score, times = rival.reason, ""
        if rival.score is not None:
            score = format_score(rival.score)
            times = f"{rival.score / plan.score:.2f} ×" if plan.score > 0 else ""
        rows.append({"name": rival.name, "score": score, "times": times})
    return rows


def other_formats(plan: Plan, measured: Measured) -> list[dict[str, str]]:
    """What was measured in the formats that the budgets are not about."""
    rows = []
    for cost in measured.costs:
        if cost.format != plan.format:
            rows.append(
                {
                    "format": cost.format,
                    "name": QUANTITY_NAMES[cost.quantity],
                    "load": cost.load,
                    "parent": show(cost.parent.value, cost.quantity),
                    "child": show(cost.child.value, cost.quantity),
                    "of_parent": _percent(cost.child.value / cost.parent.value),
                }
            )
    return rows


def speedup(cost: MeasuredCost) -> Cost:
    """How many times as fast the child is; the interval takes the worst of both ends."""
    return Cost(
        value=cost.parent.value / cost.child.value,
        low=cost.parent.low / cost.child.high,
        high=cost.parent.high / cost.child.low,
        origin="measured",
    )


def quality_rows(measured: Measured) -> list[dict[str, str]]:
    """The parent, the child before and the child after distillation, a row each."""
    parent = measured.distilled.parent_bits_per_byte
    rows = [{"name": "parent", "bits": interval(parent, 3), "kl": "0", "agreement": "100 %", "ratio": "1"}]
    named: list[tuple[str, Quality]] = [
        ("child, before distillation", measured.realised),
        ("child, distilled", measured.distilled),
    ]
    for name, quality in named:
        rows.append(
            {
                "name": name,
                "bits": interval(quality.bits_per_byte, 3),
                "kl": interval(quality.kl, 3),
                "agreement": percent_interval(quality.agreement),
                "ratio": interval(quality.bits_per_byte_ratio, 3),
            }
        )
    return rows


def interval(estimate: Estimate, digits: int) -> str:
    """``1.234 (1.200 to 1.270)``."""
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def percent_interval(estimate: Estimate) -> str:
    """``81.2 % (80.5 to 81.9)``."""
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def layer_pictures(parent: Sequence[Block], child: Sequence[Block]) -> list[LayerPicture]:
    """What each layer became."""
    return [
        LayerPicture(index=index, mixer=_mixer_picture(own.mixer, new.mixer), ffn=_ffn_picture(own.ffn, new.ffn))
        for index, (own, new) in enumerate(zip(parent, child, strict=True))
    ]


def engine_rows(plan: Plan) -> list[dict[str, Any]]:
    """Which engines load the child's checkpoint, and what stands in the way where they cannot."""
    return [{"engine": engine, "reasons": reasons} for engine, reasons in engine_obstacles(plan.child).items()]


def _cost_line(promise: Promise, cost: MeasuredCost, plan: Plan) -> CostLine:
    quantity = promise.quantity
    place = (quantity, promise.device, promise.load)
    budgets = [line for line in plan.budgets if (line.quantity, line.device, line.load) == place]
    return CostLine(
        name=QUANTITY_NAMES[quantity],
        load=promise.load,
        asked=budget_words(budgets),
        parent=show(cost.parent.value, quantity),
        parent_promised=show(promise.parent.value, quantity),
        promised=show(promise.child.value, quantity),
        promised_interval=_ends(promise.child, quantity),
        measured=show(cost.child.value, quantity),
        measured_interval=_ends(cost.child, quantity),
        off=f"{100 * (cost.child.value / promise.child.value - 1):+.1f} %",
        of_parent=_percent(cost.child.value / cost.parent.value),
        of_parent_promised=_percent(promise.child.value / promise.parent.value),
        is_met=all(_is_met(budget, cost) for budget in budgets),
    )


def _limit(budget: BudgetLine) -> str:
    """As the user wrote it, where that was no share."""
    if budget.share is not None:
        return _percent(budget.share)
    return show(budget.limit, budget.quantity, is_binary="iB" in budget.text)


def _is_met(budget: BudgetLine, cost: MeasuredCost) -> bool:
    """A share of the parent's cost is a share of what the parent took in the same run."""
    limit = budget.limit if budget.share is None else budget.share * cost.parent.value
    return cost.child.value >= limit if budget.is_least else cost.child.value <= limit


def _ends(cost: Cost, quantity: Quantity) -> str:
    return "" if cost.low == cost.high else f"{show(cost.low, quantity)} to {show(cost.high, quantity)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _mixer_picture(own: Mixer, new: Mixer) -> PartPicture:
    match new:
        case Attention(num_kv_heads=heads):
            parent_heads = own.num_kv_heads if isinstance(own, Attention) else heads
            kind = "own" if new.num_kv_heads == parent_heads else "narrow"
            return PartPicture(label=f"attention, {heads} KV", kind=kind, percent=100 * heads / parent_heads)
        case LinearMixer():
            return PartPicture(label="linear", kind="linear", percent=100)
        case NoOp():
            return PartPicture(label="none", kind="none", percent=0)
        case _:
            assert_never(new)


def _ffn_picture(own: FFN, new: FFN) -> PartPicture:
    match new:
        case GatedFFN(width=width):
            parent_width = own.width if isinstance(own, GatedFFN) else width
            kind = "own" if width == parent_width else "narrow"
            return PartPicture(label=f"ffn, {width} wide", kind=kind, percent=100 * width / parent_width)
        case LinearFFN():
            return PartPicture(label="linear", kind="linear", percent=100)
        case NoOp():
            return PartPicture(label="none", kind="none", percent=0)
        case _:
            assert_never(new)
