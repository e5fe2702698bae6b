"""Results as tables for people, and as plain data for programs. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from blockwright.hw_profiles.profile import Profile
from blockwright.library import Library
from blockwright.measured import Measured, MeasuredCost
from blockwright.pipeline.tried import TRIED
from blockwright.report.facts import (
    QUANTITY_NAMES,
    RIVALS_CAPTION,
    CostLine,
    absent_words,
    budget_words,
    cost_lines,
    interval,
    measured_promises,
    percent_interval,
    price_words,
    quality_rows,
    rival_rows,
    show,
    speedup,
)
from blockwright.report.frontier import frontier_rows, gap_words
from blockwright.report.remarks import drift_words
from blockwright.search.plan import Plan
from blockwright.search.scores import ScoreTable, format_of
from blockwright.spec import FFN, Candidate, Mixer, NoOp, stored_as, variant_name
from blockwright.strict import to_data
from blockwright.units import format_score, format_time


def print_run(folder: Path, plan: Plan, measured: Measured, profile: str | None = None) -> None:
    """What a run ends with: asked, promised, measured, quality kept, where the files are, what to do next."""
    console = _console()
    _print_cost_lines(console, cost_lines(plan, measured), f"{plan.format} on {measured.device}")
    for sentence in drift_words(plan, measured):
        console.print(sentence)
    title = "On held-out text, by the checkpoints in fp32"
    quality = _table("quality", "bits per byte", "KL to the parent", "same next token", title=title)
    for row in quality_rows(measured):
        quality.add_row(row["name"], row["bits"], row["kl"], row["agreement"])
    console.print(quality)
    decode = [c for c in measured.costs if c.format == plan.format and c.quantity == "time_per_token"]
    for cost in decode:
        faster = speedup(cost)
        console.print(
            f"The child writes {faster.value:.2f} times as fast as its parent ({faster.low:.2f} to {faster.high:.2f}) "
            f"at {cost.load} and keeps {percent_interval(measured.distilled.agreement)} of its next tokens."
        )
    if plan.rivals:
        _print_rivals(console, plan)
    console.print(f"The plan is {_certificate(plan)}.")
    console.print(
        f"""
Report      {folder}/report.html
Child       {folder}/child  (loads in plain transformers with trust_remote_code=True)
Engine      {folder}/engine/onnxruntime/child-{plan.format}
Plan        {folder}/{"plan.json" if plan.whole is None else "refined.json"}
Next        blockwright generate {folder}/engine/onnxruntime/child-{plan.format} --prompt 'def main(' --temperature 0.8
            blockwright search --scores {folder}/scores.parquet --profile {_profile_tried(folder, profile)} \\
                --budget '{plan.budgets[0].quantity}@{plan.budgets[0].load} <= 80%' --format {plan.format} \\
                {_load_flags(plan)}""",
        soft_wrap=True,
    )


def _profile_tried(folder: Path, given: str | None) -> str | Path:
    """The profile that knows most: with the children that were tried, where one was too slow."""
    tried = folder / f"profile-{TRIED}"
    return tried if tried.exists() else given or folder / "profile"


def run_to_data(folder: Path, plan: Plan, measured: Measured) -> dict[str, Any]:
    """The same for programs."""
    return {
        "folder": str(folder),
        "status": plan.status,
        "score": plan.score,
        "bound": plan.bound,
        "budgets": to_data(plan.budgets),
        "promises": to_data(plan.promises),
        "measured": to_data(measured),
    }


def print_plan(plan: Plan) -> None:
    """A plan: what is promised, what budgets are worth, and which blocks."""
    console = _console()
    for device, profile in plan.devices.items():
        title = f"{plan.format} on {device}" + ("" if device == profile else f" ({profile})")
        costs = _table("cost", "load", "asked", "parent", "promised", "interval", title=title)
        for promise in (p for p in plan.promises if p.device == device):
            place = (promise.quantity, promise.device, promise.load)
            lines = [line for line in plan.budgets if (line.quantity, line.device, line.load) == place]
            binds = any(line.is_binding for line in lines)
            ends = (show(promise.child.low, promise.quantity), show(promise.child.high, promise.quantity))
            costs.add_row(
                QUANTITY_NAMES[promise.quantity],
                promise.load,
                budget_words(lines) + " (binds)" * binds,
                show(promise.parent.value, promise.quantity),
                show(promise.child.value, promise.quantity),
                "" if ends[0] == ends[1] else " to ".join(ends),
            )
        console.print(costs)
    for name, batch in plan.batches.items():
        console.print(f"The {name} is {batch}.")
    for sentence in price_words(plan):
        console.print(sentence)
    blocks = _table("layer", "mixer", "ffn")
    for index, (own, new) in enumerate(zip(plan.parent.layers, plan.child.layers, strict=True)):
        blocks.add_row(str(index), _part(new.mixer, own.mixer, plan), _part(new.ffn, own.ffn, plan))
    console.print(blocks)
    if plan.frontier and plan.frontier_axes:
        _print_frontier(console, plan)
    if plan.pool:
        _print_pool(console, plan)
    for sentence in [*plan.notes, *plan.shortfalls, *absent_words(plan)]:
        console.print(sentence)
    if plan.rivals:
        _print_rivals(console, plan)
    console.print(f"The plan is {_certificate(plan)}.")


def _print_frontier(console: Console, plan: Plan) -> None:
    heading, *rows = frontier_rows(plan)
    frontier = _table(*heading, title="The frontier")
    for row in rows:
        frontier.add_row(*row)
    console.print(frontier)


def _print_pool(console: Console, plan: Plan) -> None:
    columns = ("plan", "sum of scores", "above the best", "layers that differ", "status")
    pool = _table(*columns, title="The pool")
    for index, other in enumerate(plan.pool):
        scores = (format_score(other.score), format_score(other.score - plan.score))
        pool.add_row(str(index + 1), *scores, str(other.layers_differ), gap_words(other))
    console.print(pool)


def _print_rivals(console: Console, plan: Plan) -> None:
    rivals = _table("chosen by", "sum of scores", "times the plan's", title="The plan beside simpler ways to choose")
    for row in rival_rows(plan):
        rivals.add_row(row["name"], row["score"], row["times"])
    console.print(rivals)
    console.print(RIVALS_CAPTION)


def _part(new: Mixer | FFN, own: Mixer | FFN, plan: Plan) -> str:
    name = "as the parent" if with_own_format(new, own) == own else variant_name(new)
    return name if plan.format != "mixed" or isinstance(new, NoOp) else f"{name}, {new.weights}"


def with_own_format(new: Mixer | FFN, own: Mixer | FFN) -> Mixer | FFN:
    """The new part as if it were stored like the parent's own."""
    return new if isinstance(new, NoOp) or isinstance(own, NoOp) else stored_as(new, own.weights)


def print_costs(costs: Sequence[MeasuredCost], plan: Plan | None) -> None:
    """Measured costs of two engines, beside a plan's promises where there is one."""
    promises = {} if plan is None else {(p.quantity, p.load): p.child for p in measured_promises(plan)}
    table = _table("cost", "load", "against", "engine", "ratio", *(["promised", "off by"] if plan else []))
    for cost in costs:
        promised = promises.get((cost.quantity, cost.load))
        row = [
            QUANTITY_NAMES[cost.quantity],
            cost.load,
            show(cost.parent.value, cost.quantity),
            show(cost.child.value, cost.quantity),
            f"{cost.parent.value / cost.child.value:.2f} ×",
        ]
        if promised is not None:
            row += [show(promised.value, cost.quantity), f"{100 * (cost.child.value / promised.value - 1):+.1f} %"]
        table.add_row(*row)
    _console().print(table)


def print_profile(profile: Profile) -> None:
    """The times of a profile."""
    console = _console()
    cores = profile.device.num_cores
    words = "" if cores is None else f", {cores} cores, {profile.num_threads} thread(s)"
    console.print(profile.device.model + words)
    rates = [f"{rate.value / 1e9:.1f} in {name}" for name, rate in profile.ceilings.flop_per_s.items()]
    console.print(
        f"reads {profile.ceilings.read_bytes_per_s.value / 1e9:.1f} GB/s from memory, "
        f"computes GFLOP/s: {', '.join(rates)}; begins an operator in {format_time(profile.ceilings.launch_s.value)}"
    )
    table = _table("backend", "format", "part", "new tokens", "slots", "time", "interval (90 %)")
    for row in profile.times:
        table.add_row(
            row.backend,
            row.format,
            f"{row.part} {row.variant}",
            str(row.point.new_tokens),
            str(row.point.slots),
            format_time(row.time_s),
            f"{format_time(row.low_s)} to {format_time(row.high_s)}",
        )
    console.print(table)


def print_library(library: Library) -> None:
    """How close each candidate of a library comes to the parent's layer."""
    table = _table(
        "layer", "part", "candidate", "error before training", "error after", title="Share of the layer's own delta"
    )
    for entry in library.entries:
        candidate = entry.candidate
        table.add_row(
            str(candidate.layer),
            candidate.part,
            variant_name(candidate.variant),
            f"{entry.initial_delta_nmse:.3f}",
            f"{entry.delta_nmse:.3f}",
        )
    for entry in library.blocks:
        name = f"{variant_name(entry.block.mixer)} + {variant_name(entry.block.ffn)}"
        table.add_row(str(entry.layer), "both", name, f"{entry.initial_delta_nmse:.3f}", f"{entry.delta_nmse:.3f}")
    _console().print(table)


def print_scores(table: ScoreTable) -> None:
    """What the parent loses by each candidate."""
    headings = {"kl": "KL, nats per token (95 %)", "lm_loss": "lm_loss, nats per token (95 %)"}
    metrics = [headings.get(metric, f"{metric} (95 %)") for metric in table.metrics]
    shown = _table("layer", "part", "candidate", "format", *metrics)
    by_candidate: dict[Candidate, list[str]] = {}
    for score in table.scores:
        by_candidate.setdefault(score.candidate, []).append(interval(score.estimate, 4))
    for candidate, values in by_candidate.items():
        name = variant_name(candidate.variant)
        shown.add_row(str(candidate.layer), candidate.part, name, format_of(candidate), *values)
    _console().print(shown)


def _print_cost_lines(console: Console, lines: Sequence[CostLine], title: str) -> None:
    table = _table("cost", "asked", "parent", "promised", "measured", "off by", "of parent", "promised", title=title)
    for line in lines:
        met = "" if not line.asked else " met" if line.is_met else " MISSED"
        table.add_row(
            f"{line.name} ({line.load})",
            line.asked,
            line.parent,
            line.promised,
            f"{line.measured}{met}",
            line.off,
            line.of_parent,
            line.of_parent_promised,
        )
    console.print(table)


def _certificate(plan: Plan) -> str:
    if plan.whole is not None:
        kl, best_sum_kl = interval(plan.whole.kl, 3), interval(plan.whole.best_sum_kl, 3)
        return (
            f"the best of {plan.whole.plans_measured} whole children measured: it loses {kl} before distillation, "
            f"the one with the best sum of scores {best_sum_kl}"
        )
    if plan.status == "optimal":
        score = format_score(plan.score)
        return f"proven optimal: no other choice within the budgets has a sum of scores below {score}"
    why = f"within the tolerance of {plan.tolerance:g} asked for" if plan.is_within_tolerance else "in the time limit"
    return f"the best found {why}, at most {100 * plan.gap:.2g} % from optimal"


def _load_flags(plan: Plan) -> str:
    return " ".join(
        f"--load {name}={load.batch}x{load.prompt_tokens}+{load.new_tokens}" for name, load in plan.loads.items()
    )


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)
