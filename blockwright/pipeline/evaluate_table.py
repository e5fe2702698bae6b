"""Results on tasks, as a table or as JSON."""

import json

from rich import box
from rich.console import Console
from rich.table import Table

from blockwright.pipeline.evaluate import Evaluated, Result
from blockwright.strict import to_data


def print_evaluated(evaluated: Evaluated, *, as_json: bool) -> None:
    """Prints every metric with its standard error and, beside another checkpoint, the paired difference."""
    if as_json:
        print(json.dumps(to_data(evaluated), indent=1, allow_nan=False))
        return
    is_paired = evaluated.against is not None
    title = evaluated.checkpoint + (f", against {evaluated.against}" if is_paired else "")
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    columns = ("task", "metric", "items", "shots", "value ± standard error")
    for column in columns + (("against", "difference (95 % interval)") if is_paired else ()):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for result in evaluated.results:
        row = (result.task, _metric(result), f"{result.num_items:,}", str(result.num_shots))
        values = [_show(result.value, result.standard_error)]
        if is_paired:
            values += [_show(result.against_value, result.against_standard_error), _difference(result)]
        table.add_row(*row, *values)
    Console(highlight=False, markup=False, width=130).print(table)
    if is_paired:
        print("Differences are of the same items, each a pair; an interval that leaves 0 out is a difference.")


def _metric(result: Result) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[result.is_higher_better]
    return result.metric + ("" if result.filter == "none" else f" ({result.filter})") + arrow


def _show(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _difference(result: Result) -> str:
    found = result.difference
    return "–" if found is None else f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
