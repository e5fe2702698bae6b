"""How well a profile foretells, as a table for people."""

from rich import box
from rich.console import Console
from rich.table import Table

from blockwright.hw_profiles.profile import Profile
from blockwright.report.facts import QUANTITY_NAMES


def print_accuracy(profile: Profile) -> None:
    """Errors of what was foretold, by quantity, format and phase."""
    title = f"{profile.name}: foretold against measured, models it was not fitted on"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in ("cost", "format", "phase", "n", "mean", "median", "p90", "worst", "bias", "tau", "in interval"):
        table.add_column(column, justify="left" if column in ("cost", "format", "phase") else "right")
    for row in profile.accuracy:
        errors = (row.mean_error, row.median_error, row.p90_error, row.worst_error)
        table.add_row(
            QUANTITY_NAMES[row.quantity],
            row.format,
            row.phase,
            str(row.num_held_out),
            *(f"{100 * error:.1f} %" for error in errors),
            f"{100 * row.bias:+.1f} %",
            "–" if row.kendall_tau is None else f"{row.kendall_tau:.2f}",
            f"{100 * row.interval_coverage:.0f} %",
        )
    Console(highlight=False, markup=False, width=130).print(table)
