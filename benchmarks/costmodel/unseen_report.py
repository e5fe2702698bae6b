"""The table of `unseen.py`'s results, written beside them.

`python benchmarks/costmodel/unseen_report.py RESULTS...`; where several hold the same test, the last counts.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

TUNED_ON = "H100"
WAYS = ("ours", "nearest", "linear", "inverse distance", "random forest", "roofline, two constants")
TESTS = {
    "sites": "shapes, four fifths of the others known (inverse distance: all)",
    "widths": "shapes, 40 % known, drawn anew in each split",
    "rows, rotated": "row counts, ten for each shape, rotated",
    "rows, none dense": "row counts, the same ten for all shapes",
    "rows, half dense": "row counts, ten, half of the shapes dense",
    "scattered": "attention, 16 points, scattered",
    "lattice": "attention, 16 points, one lattice for all",
}

INTRODUCTION = f"""\
Settings were chosen on the {TUNED_ON} only, marked *: what stands there is no proof. Errors are shares of the measured
time, in per cent. We advise to measure rotated rows and scattered points, for what is never measured of any shape, as
the row count after a tile's end, is not learnt; the same ten rows and one lattice for all are there for comparison. On
the right are mean errors of baselines on the same folds; the least is bold. Of blocks, 2·(h×h) + 2·(f×h) + (h×f).
Where several splits were drawn their rows count together, and the least and the most of their means are in brackets,
with the number of splits.
"""


def main(paths: Sequence[Path]) -> None:
    """Writes one table for all results, next to the first."""
    results = [json.loads(path.read_text()) for path in paths]
    first = results[0]
    out = paths[0].with_name(f"costmodel-unseen_open-gpu-tables_{first['date']}.md")
    out.write_text(
        "\n".join(
            [
                "# Times of operators that were not timed",
                "",
                *(f"`{each['command']}`, commit {each['commit']}, {each['software']['system']}" for each in results),
                "",
                *INTRODUCTION.splitlines(),
                "",
                "| device | kernel | asked | n | ours: mean | median | p90 | in ±10 % | bias | coverage of 90 % | width"
                " | fit, CPU s | nearest | linear | inv. dist. | forest | two const. |",
                "|---" * 17 + "|",
                *lines([each["rows"] for each in results]),
                "",
            ]
        )
    )


def lines(results: Sequence[Sequence[dict[str, object]]]) -> list[str]:
    """A line for each device, kernel, test and case, all of it from the last result that holds it."""
    cases: dict[tuple[str, ...], dict[str, dict[str, object]]] = {}
    for rows in results:
        own: dict[tuple[str, ...], dict[str, dict[str, object]]] = {}
        for row in rows:
            key = tuple(str(row[name]) for name in ("test", "table", "case", "device"))
            own.setdefault(key, {})[str(row["way"])] = row
        cases |= own
    order = list(TESTS)
    return [
        line(key, ways) for key, ways in sorted(cases.items(), key=lambda item: (order.index(item[0][0]), item[0][1:]))
    ]


def line(key: tuple[str, ...], ways: dict[str, dict[str, object]]) -> str:
    """One case, with our other figures and everybody's mean."""
    test, table, case, device = key
    ours = ways["ours"]
    least = min(float(str(row["mean"])) for row in ways.values())
    asked = TESTS[test] + ("" if case == "operators" else f": {case}")
    cells = [device + ("*" if device == TUNED_ON else ""), table, asked, str(ours["n"])]
    cells.append(_mean(ways, "ours", least) + _spread(ours))
    cells += [_percent(ours, name) for name in ("median", "p90", "within_10", "bias", "coverage", "interval_width")]
    cells.append(f"{float(str(ours['fit_cpu_s'])):.1f}" if "fit_cpu_s" in ours else "–")
    cells += [_mean(ways, way, least) for way in WAYS[1:]]
    return "| " + " | ".join(cells) + " |"


def _mean(ways: dict[str, dict[str, object]], way: str, least: float) -> str:
    if way not in ways:
        return "–"
    text = _percent(ways[way], "mean")
    return f"**{text}**" if float(str(ways[way]["mean"])) == least else text


def _spread(row: dict[str, object]) -> str:
    """Between the means of the splits."""
    means = row.get("means")
    if not isinstance(means, list) or len(means) < 2:
        return ""
    return f" ({100 * min(means):.1f} to {100 * max(means):.1f}, {len(means)})"


def _percent(row: dict[str, object], name: str) -> str:
    return f"{100 * float(str(row[name])):.1f}" if name in row else "–"


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
