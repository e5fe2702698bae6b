"""Lays the page out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from blockwright.count import parameters
from blockwright.hw_profiles.tried import TriedChild
from blockwright.measured import Measured
from blockwright.report.facts import (
    RIVALS_CAPTION,
    cost_lines,
    engine_rows,
    layer_pictures,
    other_formats,
    percent_interval,
    quality_rows,
    rival_rows,
    speedup,
)
from blockwright.report.figures import distillation_figure, frontier_figure
from blockwright.report.frontier import frontier_status
from blockwright.report.remarks import drift_words, trial_words
from blockwright.search.plan import Plan
from blockwright.units import format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the page is made of."""

    name: str
    parent_name: str
    plan: Plan
    measured: Measured
    distillation_kl: Sequence[float]
    manifest: dict[str, Any]
    tried: Sequence[TriedChild] = ()
    """Of this child and of others."""


def page(report: Report) -> str:
    """The page as HTML, with its style and pictures in it."""
    environment = Environment(
        loader=PackageLoader("blockwright.report", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plan, measured = report.plan, report.measured
    decode = [c for c in measured.costs if c.format == plan.format and c.quantity == "time_per_token"]
    faster = speedup(decode[0])
    return environment.get_template("page.html").render(
        name=report.name,
        parent_name=report.parent_name,
        plan=plan,
        measured=measured,
        faster=faster,
        faster_load=decode[0].load,
        agreement=percent_interval(measured.distilled.agreement),
        parent_parameters=format_count(parameters(plan.parent)),
        child_parameters=format_count(parameters(plan.child)),
        costs=cost_lines(plan, measured),
        remarks=[*trial_words(plan, report.tried), *drift_words(plan, measured)],
        other_formats=other_formats(plan, measured),
        quality=quality_rows(measured),
        layers=layer_pictures(plan.parent.layers, plan.child.layers),
        engines=engine_rows(plan),
        rivals=rival_rows(plan) if plan.rivals else [],
        rivals_caption=RIVALS_CAPTION,
        frontier_status=frontier_status(plan),
        frontier=frontier_figure(plan) if plan.frontier else "",
        distillation=distillation_figure(report.distillation_kl),
        stages=report.manifest,
    )
