"""The report's plots, as SVG text to stand in the page."""

import io
import re
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from blockwright.cost import UNIT_OF, Quantity
from blockwright.search.plan import Plan
from blockwright.units import format_quantity

_INK, _CHILD, _LIMIT, _GREY = "#1f2933", "#0b7a75", "#c2410c", "#8b98a5"


def frontier_figure(plan: Plan) -> str:
    """The Pareto frontier between the first budget's quantity and the sum of scores, with the plan on it.

    Args:
        plan: one with a frontier, which goes along its first budget from above.
    """
    line = next(line for line in plan.budgets if not line.is_least)
    figure, axes = _figure()
    shown = [point for point in plan.frontier if point.score > 0]  # the parent's own 0 has no place on a log scale
    costs, scores = [point.spent for point in shown], [point.score for point in shown]
    axes.step(costs, scores, where="post", color=_GREY, linewidth=1)
    axes.plot(costs, scores, "o", color=_GREY, markersize=4, label="best child at other budgets")
    axes.axvline(line.limit, color=_LIMIT, linewidth=1, linestyle="--", label="budget")
    axes.plot([line.spent], [plan.score], "D", color=_CHILD, markersize=9, label="chosen")
    axes.set_yscale("log")
    axes.set_xlabel(f"{line.quantity.replace('_', ' ')} at {line.load}, promised")
    axes.set_ylabel("sum of scores (KL, nats per token)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _show(x, line.quantity)))
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure, "The Pareto frontier between cost and quality, with the chosen plan")


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


def _show(value: float, quantity: Quantity) -> str:
    return format_quantity(value, UNIT_OF[quantity])


def _svg(figure: Figure, title: str) -> str:
    """The figure without the file's head, with words as words, sized to what it stands in."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "blockwright"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{title}"', text, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
