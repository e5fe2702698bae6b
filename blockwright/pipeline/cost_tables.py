"""Costs and profiles as tables for people. Loads no torch."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from blockwright.cost import Cost, Quantity
from blockwright.hw_profiles.datasheet_profile import is_datasheet
from blockwright.hw_profiles.profile import IMPORTED, Profile
from blockwright.pipeline.marks import mark_lines, marks_of
from blockwright.pipeline.predict import Prediction, PredictOrder
from blockwright.pipeline.profile_show import named_ceilings, row_counts
from blockwright.report.facts import QUANTITY_NAMES, show
from blockwright.units import format_bytes, format_time


def print_predictions(order: PredictOrder, found: Sequence[Prediction]) -> None:
    """A table for each device: a row for each quantity at each load."""
    console = _console()
    for device in order.devices:
        beside = ["parent"] if order.parent is not None else []
        table = table_of("cost", "load", *beside, "foretold", "interval", "origin", title=_title(order, device))
        for one in found:
            if one.device == device:
                own = [] if one.parent is None else [show(one.parent.value, one.quantity)]
                table.add_row(QUANTITY_NAMES[one.quantity], one.load, *own, *_cells(one.model, one.quantity))
        console.print(table)
    if any(_is_by_datasheet(order, profile) for profile in order.devices.values()):
        console.print(
            "What only a datasheet tells is off by as much as its interval says; parent and child are off together."
        )


def _title(order: PredictOrder, device: str) -> str:
    profile = order.devices[device]
    words = f"{device} ({profile.name})" if device != profile.name else device
    return f"{words}, by its datasheet" if _is_by_datasheet(order, profile) else words


def _is_by_datasheet(order: PredictOrder, profile: Profile) -> bool:
    return is_datasheet(profile) and order.backend not in IMPORTED


def _cells(cost: Cost, quantity: Quantity) -> tuple[str, str, str]:
    ends = show(cost.low, quantity), show(cost.high, quantity)
    counted = cost.low == cost.high
    return show(cost.value, quantity), "" if counted else " to ".join(ends), "counted" if counted else cost.origin


def table_of(*columns: str, title: str | None = None) -> Table:
    """A plain table."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


def print_known(profile: Profile) -> None:
    """What a profile knows of its device."""
    console = _console()
    for line in _identity(profile):
        console.print(line, soft_wrap=True)
    ceilings = table_of("at most", "value", "interval", "origin", "source")
    figures = named_ceilings(profile)
    sources = list(dict.fromkeys(figure.source for figure, _ in figures.values()))
    for name, (figure, unit) in figures.items():
        ends = f"{_amount(figure.low, unit)} to {_amount(figure.high, unit)}"
        number = f"[{sources.index(figure.source) + 1}]"
        ceilings.add_row(name, _amount(figure.value, unit), ends, figure.origin, number)
    console.print(ceilings)
    for number, source in enumerate(sources, start=1):
        console.print(f"[{number}] {source}", soft_wrap=True)
    for kind, origins in row_counts(profile).items():
        console.print(f"{kind} rows: " + ", ".join(f"{count} {origin}" for origin, count in origins.items()))
    for line in mark_lines(marks_of(profile)):
        console.print(line, soft_wrap=True)
    if not profile.accuracy:
        console.print("How well it foretells was not tried.")
        return
    tried = table_of(
        "cost", "format", "phase", "held out", "mean", "median", "p90", "worst", "bias", "order", "covered"
    )
    for row in profile.accuracy:
        sizes = (row.mean_error, row.median_error, row.p90_error, row.worst_error)
        tried.add_row(
            QUANTITY_NAMES[row.quantity],
            row.format,
            row.phase,
            str(row.num_held_out),
            *(f"{100 * error:.1f} %" for error in sizes),
            f"{100 * row.bias:+.1f} %",
            "" if row.kendall_tau is None else f"{row.kendall_tau:.2f}",
            f"{100 * row.interval_coverage:.0f} %",
        )
    console.print(tried)


def _identity(profile: Profile) -> list[str]:
    device, coverage = profile.device, profile.coverage
    cores = [] if device.num_cores is None else [f"{device.num_cores} cores, {profile.num_threads} thread(s)"]
    facts = [device.architecture, *cores, format_bytes(device.memory_bytes), *device.features]
    facts += [word for word in (device.board, device.power_mode) if word is not None]
    software = ", ".join(f"{name} {version}" for name, version in profile.software.items())
    words = f" here, {len(profile.wholes)} imported" if profile.wholes else ""
    measured = (
        f"nothing measured{words}: documents read on {profile.created[:10]}"
        if is_datasheet(profile)
        else f"{coverage.done} of {coverage.asked} measurements, {coverage.failed} failed, until {coverage.ended}"
    )
    model = profile.model
    shape = "" if model is None else f"{model.family}, {len(model.layers)} layers, {model.hidden_size} wide"
    lines = [f"{profile.name}: {device.vendor} {device.model}, " + ", ".join(facts)]
    lines += [f"parent: {shape}"] if shape else []
    return [*lines, f"coverage: {measured}", *([f"software: {software}"] if software else [])]


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return format_time(value)
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"
