"""The report's plots, as SVG text to stand in the page."""

import io
import re
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from blockwright.report.frontier import axis_name, axis_value
from blockwright.search.plan import Axis, FrontierAxes, Plan

_INK, _CHILD, _LIMIT, _GREY = "#1f2933", "#0b7a75", "#c2410c", "#8b98a5"


def frontier_figure(plan: Plan) -> str:
    """The Pareto frontier between the two quantities it was asked for, with the plan in it.

    Args:
        plan: one with a frontier; where it does not say between what, along its first budget from above.
    """
    axes = plan.frontier_axes or _first_axes(plan)
    along, against = axes.along, axes.against
    figure, plot = _figure()
    shown = [point for point in plan.frontier if against or point.value > 0]  # a log scale has no place for 0
    costs, values = [point.spent for point in shown], [point.value for point in shown]
    plot.step(costs, values, where="pre" if along.quantity == "throughput" else "post", color=_GREY, linewidth=1)
    plot.plot(costs, values, "o", color=_GREY, markersize=4, label="best child at other limits")
    for line in plan.budgets:
        is_along = (line.quantity, line.device, line.load) == (along.quantity, along.device, along.load)
        if is_along and line.is_least == (along.quantity == "throughput"):
            plot.axvline(line.limit, color=_LIMIT, linewidth=1, linestyle="--", label="budget")
    plot.plot([axes.plan_along], [axes.plan_against], "D", color=_CHILD, markersize=9, label="chosen")
    plot.set_xlabel(f"{axis_name(along, plan.metric)}, promised")
    plot.set_ylabel(axis_name(against, plan.metric) + (", promised" if against else ""))
    plot.xaxis.set_major_formatter(FuncFormatter(lambda x, _: axis_value(x, along)))
    if against:
        plot.yaxis.set_major_formatter(FuncFormatter(lambda y, _: axis_value(y, against)))
    else:
        plot.set_yscale("log")
    plot.legend(frameon=False, fontsize=9)
    second = "quality" if against is None else axis_name(against, plan.metric)
    return _svg(
        figure, f"The Pareto frontier between {axis_name(along, plan.metric)} and {second}, with the chosen plan"
    )


def _first_axes(plan: Plan) -> FrontierAxes:
    """What frontiers lay between before plans said so."""
    line = next(line for line in plan.budgets if not line.is_least)
    along = Axis(quantity=line.quantity, device=line.device, load=line.load)
    return FrontierAxes(along=along, against=None, most_score=None, plan_along=line.spent, plan_against=plan.score)


def distillation_figure(kl: Sequence[float]) -> str:
    """KL to the parent over the steps of distillation."""
    figure, axes = _figure(height=2.6)
    axes.plot(range(1, len(kl) + 1), kl, color=_CHILD, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("KL, nats per token")
    axes.set_ylim(bottom=0)
    return _svg(figure, "KL to the parent during distillation")


def _figure(height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.grid(axis="y", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """The figure without the file's head, with words as words, sized to what it stands in."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "blockwright"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{title}"', text, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
