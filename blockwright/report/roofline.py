"""The roofline of a device with everything that was measured on it below: a plot of its own, as a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from blockwright.errors import InputError
from blockwright.files import new_file
from blockwright.hw_profiles.ceilings import Ceilings

_INK = "#1f2933"
_ROOFS = ("#0b7a75", "#c2410c", "#5b5bd6", "#8b98a5", "#b45309", "#be185d", "#0369a1")
_MARKS = {"products": "o", "attention": "^", "elementwise": "x"}
_KINDS = (".svg", ".png", ".html")
_PAGE = '<!doctype html>\n<meta charset="utf-8">\n<title>{name}</title>\n<body style="max-width:60rem">{svg}</body>\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A measurement: how much it works on each byte, and how fast."""

    kind: str
    """``products``, ``attention`` or ``elementwise``."""
    flop_per_byte: float
    flop_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """What is plotted."""

    name: str
    ceilings: Ceilings
    dots: tuple[Dot, ...]


def check_plot(path: Path) -> None:
    """Refuses a plot that cannot be written.

    Raises:
        InputError: its name ends in something else than a kind of picture.
    """
    if path.suffix.lower() not in _KINDS or path.is_dir():
        raise InputError(
            "--plot",
            got=path,
            expected=f"a file that ends in {', '.join(_KINDS)}",
            remedy="Name one, such as roofline.png.",
        )


def write_roofline(roofline: Roofline, path: Path) -> None:
    """Writes the plot as what its name ends in.

    Raises:
        InputError: its name ends in something else than a kind of picture.
    """
    check_plot(path)
    figure, suffix = _figure(roofline), path.suffix.lower()
    with new_file(path) as temporary:
        if suffix == ".png":
            figure.savefig(temporary, format="png", dpi=160)
            return
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "blockwright"}):
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        if suffix == ".html":
            text = temporary.read_text(encoding="utf-8")
            temporary.write_text(_PAGE.format(name=roofline.name, svg=text[text.index("<svg") :]), encoding="utf-8")


def _figure(roofline: Roofline) -> Figure:
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    ceilings, dots = roofline.ceilings, roofline.dots
    read = ceilings.read_bytes_per_s.value
    ridges = [rate.value / read for rate in ceilings.flop_per_s.values()]
    seen = [dot.flop_per_byte for dot in dots]
    x = np.geomspace(min([0.25, *seen]) / 2, 8 * max([*ridges, *seen]), 400)
    for color, (name, rate) in zip(_ROOFS, ceilings.flop_per_s.items(), strict=False):
        axes.plot(x, np.minimum(x * read, rate.value), color=color, linewidth=1.4, label=f"{name} at most")
        axes.fill_between(
            x,
            np.minimum(x * ceilings.read_bytes_per_s.low, rate.low),
            np.minimum(x * ceilings.read_bytes_per_s.high, rate.high),
            color=color,
            alpha=0.12,
            linewidth=0,
        )
    if ceilings.cache_read_bytes_per_s is not None:
        cached = x * ceilings.cache_read_bytes_per_s.value
        most = max(rate.value for rate in ceilings.flop_per_s.values())
        axes.plot(x, np.minimum(cached, most), color=_INK, linewidth=0.8, linestyle=":", label="from the cache")
    for kind, mark in _MARKS.items():
        mine = [dot for dot in dots if dot.kind == kind]
        if mine:
            axes.plot(
                [dot.flop_per_byte for dot in mine],
                [dot.flop_per_s for dot in mine],
                mark,
                color=_INK,
                markersize=4,
                alpha=0.6,
                label=f"measured: {kind}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("operations per second")
    axes.set_title(roofline.name, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure
