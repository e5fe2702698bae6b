"""What the documents say that a device can do, for devices that nobody has measured yet.

A datasheet's peak is not what a program reaches. The intervals here say how surely the number itself is known, not how
near one comes to it.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.datasheet_table import ABOUT, CHIPS, MEMORY, RATES, About

_FORMATS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4", "fp4")
_CELL = re.compile(r"([0-9.]+?)(?:\(([0-9.]+?)\.\.([0-9.]+)\))?([~?]?)")
_DOUBT = {"": 0.01, "~": 0.05, "?": 0.15}
_REMARK = {"": "", "~": "second-hand or derived: ", "?": "not verified against a document; beside it: "}


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasheet:
    """The figures of one device."""

    name: str
    vendor: str
    architecture: str
    compute_capability: str | None
    """Of CUDA; None where there is none."""
    num_units: Figure
    """Streaming multiprocessors, cores of a CPU, cores of Apple's GPU."""
    clock_hz: Figure
    """At which the rates below fp32 are stated."""
    fp32_clock_hz: Figure
    flop_per_clock: dict[str, Figure]
    """Of one unit, dense, by format."""
    flop_per_s: dict[str, Figure]
    """Dense, by format; 16 bit with fp32 accumulation. What a chip has no instructions for is absent."""
    memory_bytes: Figure
    memory_bits: Figure
    """The width of the bus."""
    transfers_per_s: Figure
    read_bytes_per_s: Figure
    cache_bytes: Figure
    """The last level of cache."""
    busy_w: Figure
    """The power limit, and what full load may draw."""
    power_modes_w: tuple[float, ...]
    launch_s: Figure


def known_devices() -> list[str]:
    """The names of the devices in the table."""
    return sorted(_datasheets())


def datasheet(name: str) -> Datasheet:
    """The figures of a device.

    Raises:
        InputError: nothing is known of it.
    """
    if name not in _datasheets():
        near = difflib.get_close_matches(re.sub(r"\W+", "_", name.lower()), known_devices(), n=3, cutoff=0.5)
        remedy = f"Did you mean {' or '.join(near)}?" if near else "Add a row to hw_profiles/datasheet_table.py."
        raise InputError("device", got=name, expected="one of " + ", ".join(known_devices()), remedy=remedy)
    return _datasheets()[name]


def datasheet_ceilings(name: str) -> Ceilings:
    """The most that a device does by its documents; every figure is `modelled`.

    Raises:
        InputError: nothing is known of the device.
    """
    sheet = datasheet(name)
    return Ceilings(
        read_bytes_per_s=sheet.read_bytes_per_s,
        flop_per_s=dict(sheet.flop_per_s),
        launch_s=sheet.launch_s,
        num_units=round(sheet.num_units.value),
        cache_bytes=round(sheet.cache_bytes.value),
        busy_w=sheet.busy_w,
    )


def read_table(text: str, columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Reads a table of words by its first column.

    Raises:
        ValueError: other columns, a row of another length, or a device twice.
    """
    header, *lines = (line.split() for line in text.strip().splitlines())
    if header != ["device", *columns]:
        raise ValueError(f"the columns device {' '.join(columns)}, not {' '.join(header)}")
    rows: dict[str, dict[str, str]] = {}
    for name, *cells in lines:
        if name in rows:
            raise ValueError(f"{name} stands twice")
        rows[name] = dict(zip(header[1:], cells, strict=True))
    return rows


def read_cell(cell: str, unit: float, source: str, *, is_count: bool = False) -> Figure:
    """Reads ``value``, ``value(low..high)``, either with a mark, as the table's docstring says.

    Args:
        cell: what stands in the table.
        unit: what the column counts in, in base units.
        source: the documents of the column.
        is_count: without a range or a mark it is exact.

    Raises:
        ValueError: the cell is none of these.
    """
    match = _CELL.fullmatch(cell)
    if not match:
        raise ValueError(f"a value, perhaps with (low..high) and one of ~ and ?, not {cell}")
    value, low, high, mark = match.groups()
    doubt = 0.0 if is_count and not mark else _DOUBT[mark]
    return Figure(
        value=float(value) * unit,
        low=float(low or value) * unit * (1 if low else 1 - doubt),
        high=float(high or value) * unit * (1 if high else 1 + doubt),
        origin="modelled",
        source=_REMARK[mark] + source,
    )


@cache
def _datasheets() -> dict[str, Datasheet]:
    own = [name for name in _FORMATS if name != "bf16"]
    chips = read_table(CHIPS, ["cc", "units", "MHz", "MHz_fp32", *own, "MiB_cache"])
    rates = read_table(RATES, _FORMATS)
    memory = read_table(MEMORY, ["MiB", "bits", "MT/s", "GB/s", "W", "modes_W", "us"])
    if not chips.keys() == rates.keys() == memory.keys() == ABOUT.keys():
        raise ValueError("the same devices in all tables")
    return {name: _sheet(name, chips[name], rates[name], memory[name], ABOUT[name]) for name in chips}


def _sheet(name: str, chip: dict[str, str], rates: dict[str, str], memory: dict[str, str], about: About) -> Datasheet:
    per_clock = chip | {"bf16": chip["fp16"]}
    formats = [key for key in _FORMATS if rates[key] != "-"]
    implied = f"implied by rate, units and clock; {about.rates}"
    return Datasheet(
        name=name,
        vendor=about.vendor,
        architecture=about.architecture,
        compute_capability=None if chip["cc"] == "-" else chip["cc"],
        num_units=read_cell(chip["units"], 1, about.chip, is_count=True),
        clock_hz=read_cell(chip["MHz"], 1e6, about.chip),
        fp32_clock_hz=read_cell(chip["MHz_fp32"], 1e6, about.chip),
        flop_per_clock={key: read_cell(per_clock[key], 1, implied, is_count=True) for key in formats},
        flop_per_s={key: read_cell(rates[key], 1e12, about.rates) for key in formats},
        memory_bytes=read_cell(memory["MiB"], 2**20, about.memory),
        memory_bits=read_cell(memory["bits"], 1, about.memory, is_count=True),
        transfers_per_s=read_cell(memory["MT/s"], 1e6, about.memory),
        read_bytes_per_s=read_cell(memory["GB/s"], 1e9, about.memory),
        cache_bytes=read_cell(chip["MiB_cache"], 2**20, about.chip),
        busy_w=read_cell(memory["W"], 1, about.power),
        power_modes_w=tuple(float(mode) for mode in memory["modes_W"].split("/")),
        launch_s=read_cell(memory["us"], 1e-6, about.launch),
    )
