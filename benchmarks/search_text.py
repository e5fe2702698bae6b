"""The results of `search.py` as Markdown."""

import statistics
from collections.abc import Sequence

from search_records import (
    SAME,
    Record,
    cases,
    column,
    differences,
    made_when,
    num_different,
    pool_ratios,
    proven,
    ratios_of,
    spread,
)


def as_text(results: Record) -> str:
    """All sections."""
    device, sections = results["device"], results["sections"]
    loads = [row["load_average"] for rows in sections.values() for row in rows]
    head = [
        f"# The search, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} (search {results['search']}) on {device['model']}, "
        f"{device['num_cores']} cores, one thread each, {device['memory_bytes'] / 2**30:.0f} GiB; "
        + ", ".join(f"{package} {version}" for package, version in results["software"].items())
        + ".",
        "",
        "Seconds, median (least to most) over seeds. A ratio is of CPU seconds on one instance; it counts a peer that "
        "its time limit stopped with what it had taken by then, so it is at least that. The machine had others on it: "
        f"load average {statistics.median(loads):.1f} ({min(loads):.1f} to {max(loads):.1f}), so wall seconds are "
        "too many and CPU seconds are what to read. `pressing`: every limit, or most, has a price in the relaxation, "
        "and costs differ from layer to layer; `typical`: 50 to 70 % of the parent's cost, the same in every layer. "
        "Time limits are on the wall clock, so that what they left to a peer is the CPU seconds shown.",
        "",
        made_when([row for rows in sections.values() for row in rows]),
        *(["", results["note"]] if results["note"] else []),
        "",
    ]
    parts = [targets, single, pools, frontiers, big, equal, table, rules]
    return "\n".join([*head, *(line for part in parts for line in part(sections))]) + "\n"


def targets(sections: dict[str, list[Record]]) -> list[str]:
    """What was asked, and what was measured."""
    pressing = [row for row in sections["single"] if " pressing " in row["case"]]
    ratios = ratios_of(sections["single"], "CBC")
    highs = ratios_of(sections["single"], "HiGHS")
    large = [row["cpu_s"] for row in sections["big"] if row["solver"] == "ours"]
    is_big_proven = all(row["is_proven"] for row in sections["big"] if row["solver"] == "ours")
    off, _ = differences(sections["equal"])
    single_s = [row["cpu_s"] for row in sections["single"] if row["solver"] == "ours"]
    pressing_s = statistics.median(row["cpu_s"] for row in pressing if row["solver"] == "ours")
    rows = [
        (
            "one solve, proven, ≥ 5 × CBC at the median",
            f"{statistics.median(ratios):.0f} ×",
            statistics.median(ratios) >= 5,
        ),
        ("and never slower than CBC", f"least {min(ratios):.1f} ×", min(ratios) >= 1),
        (
            "beside HiGHS by SciPy, not asked: never slower",
            f"{statistics.median(highs):.0f} ×, least {min(highs):.1f} ×",
            min(highs) >= 1,
        ),
        (
            "aim: 50 ms",
            f"{1e3 * statistics.median(single_s):.0f} ms CPU, pressing {1e3 * pressing_s:.0f} ms",
            pressing_s <= 0.05,
        ),
        *_pools_and_frontiers(sections),
        ("126 × 400 with 8 budgets proven in ≤ 5 s", spread(large) + " CPU", is_big_proven and max(large) <= 5),
        (f"optima equal CBC's to {SAME:g}", f"{len(off)} compared, {max(off):.1e} apart at most", max(off) <= SAME),
    ]
    lines = ["## Asked and measured", "", "| asked | measured | met |", "|---|---|---|"]
    return [*lines, *(f"| {asked} | {shown} | {'yes' if met else '**no**'} |" for asked, shown, met in rows), ""]


def _pools_and_frontiers(sections: dict[str, list[Record]]) -> list[tuple[str, str, bool]]:
    pooled = pool_ratios(sections["pools"])
    over = [ratio for _, ratio, _ in pooled]
    our_pools = [row for row in sections["pools"] if row["solver"] == "ours"]
    num_whole = sum(row["status"] == "Optimal" for row in our_pools)
    swept = [row for row in sections["frontiers"] if row["solver"] == "ours"]
    return [
        (
            "pools ≥ 50 × CBC with cuts",
            f"{statistics.median(over):.0f} ×, least {min(over):.0f} ×, in {len(over)} pools",
            min(over) >= 50,
        ),
        ("pools proven", f"{num_whole} of {len(our_pools)}", num_whole == len(our_pools)),
        ("objectives of pools the same", "as far as CBC came", all(off <= SAME for *_, off in pooled)),
        (
            "frontier ≤ 10 s, aim 2 s",
            spread([row["cpu_s"] for row in swept]) + " CPU",
            max(row["cpu_s"] for row in swept) <= 10,
        ),
        (
            "every point proven to the gap",
            f"on {sum(row['status'] == 'proven' for row in swept)} of {len(swept)} frontiers",
            all(row["status"] == "proven" for row in swept),
        ),
    ]


def single(sections: dict[str, list[Record]]) -> list[str]:
    """One solve."""
    lines = [
        "## One solve: 80 × 54, memory and two times",
        "",
        "| limits | solver | proven | wall | CPU | of which building, wall | CPU over ours | not ours' score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for limits in ("pressing", "typical"):
        rows = [row for row in sections["single"] if f" {limits} " in row["case"]]
        for solver in ("ours", "CBC", "HiGHS"):
            own = [row for row in rows if row["solver"] == solver]
            build = spread([row["build_s"] for row in own]) if solver != "ours" else "all counted"
            ratio = spread(ratios_of(rows, solver), "{:.1f}")
            lines.append(
                f"| {limits} | {solver} | {proven(own)} | {spread(column(own, 'wall_s'))} | "
                f"{spread(column(own, 'cpu_s'))} | {build} | {ratio} | {num_different(rows, solver)} |"
            )
    return [*lines, ""]


def pools(sections: dict[str, list[Record]]) -> list[str]:
    """Pools."""
    lines = ["## Pools of 16 at 80 × 54", ""]
    lines += ["| limits | layers differ | ours, seeds | proven | wall | CPU |", "|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(row["case"].rpartition(" ")[0] for row in sections["pools"]):
        own = [r for r in sections["pools"] if r["case"].rpartition(" ")[0] == kind and r["solver"] == "ours"]
        num_proven = sum(row["status"] == "Optimal" and len(row["scores"]) == 16 for row in own)
        shown = f"{num_proven} of {len(own)} | {spread(column(own, 'wall_s'))} | {spread(column(own, 'cpu_s'))}"
        lines.append(f"| {kind.split()[1]} | ≥ {kind.split()[2]} | {len(own)} | {shown} |")
    lines += [
        "",
        "| limits, layers differ, seed | ours for 16, CPU | CBC, CPU | CBC ended | CBC over ours | last objective both "
        "have | differs by at most, so far |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios = {case: (ratio, off) for case, ratio, off in pool_ratios(sections["pools"])}
    by_case = cases(sections["pools"])
    for case, (ratio, off) in ratios.items():
        own, peer = by_case[case]["ours"], by_case[case]["CBC"]
        count = len(peer["scores"])
        last = f"{count}: {own['scores'][count - 1]:.9f}, {peer['scores'][-1]:.9f}" if count else "none"
        least = "" if count == 16 else "≥ "
        lines.append(
            f"| {case.removeprefix('pool ').replace(' ', ', ')} | {own['cpu_s']:.2f} | {peer['cpu_s']:.0f} | "
            f"{peer['status']} | {least}{ratio:.0f} | {last} | {off:.1e} |"
        )
    return [*lines, ""]


def frontiers(sections: dict[str, list[Record]]) -> list[str]:
    """The frontier."""
    lines = [
        "## The frontier: 100 limits on memory at 80 × 54, the two times kept",
        "",
        "The gap: the standard error of the best choice's score, were each score known to within 1 %.",
        "",
        "| limits | solver | gap allowed | largest gap | wall | CPU | slowest point, wall | undominated | status |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for limits in ("pressing", "typical"):
        for solver in ("ours", "ours, exact", "CBC"):
            rows = [r for r in sections["frontiers"] if f" {limits} " in r["case"] and r["solver"] == solver]
            if not rows:
                continue
            gaps = spread([row["largest_gap"] for row in rows], "{:.4f}") if solver != "CBC" else ""
            slowest = spread(column(rows, "slowest_point_s")) if solver != "CBC" else ""
            points = spread(column(rows, "points"), "{:.0f}") if solver != "CBC" else ""
            statuses = ", ".join(sorted({row["status"] for row in rows}))
            lines.append(
                f"| {limits} | {solver}, {len(rows)} seeds | {spread(column(rows, 'gap'), '{:.4f}')} | {gaps} | "
                f"{spread(column(rows, 'wall_s'))} | {spread(column(rows, 'cpu_s'))} | {slowest} | {points} | "
                f"{statuses} |"
            )
    return [*lines, "", *_beside_cbc(sections["frontiers"]), ""]


def _beside_cbc(rows: Sequence[Record]) -> list[str]:
    """How far CBC's frontier is from ours, where both have a point."""
    lines: list[str] = []
    for case, found in cases(rows).items():
        if "CBC" not in found:
            continue
        own = {limit: (value, bound) for limit, value, bound in found["ours"]["values"]}
        pairs = [(own[limit], value) for limit, value, _ in found["CBC"]["values"] if limit in own]
        below = sum(value < bound - SAME for (_, bound), value in pairs)
        worst = max(abs(value - ours) for (ours, _), value in pairs)
        ratio = found["CBC"]["cpu_s"] / found["ours"]["cpu_s"]
        lines.append(
            f"On {case} CBC took {ratio:.0f} times our CPU seconds; at {len(pairs)} limits that both have, the values "
            f"are at most {worst:.4f} apart, and CBC's is below our bound at {below}."
        )
    return lines


def big(sections: dict[str, list[Record]]) -> list[str]:
    """Eight budgets."""
    lines = [
        "## 126 × 400, eight budgets: eight loads on four devices",
        "",
        "| limits | solver | proven | limits with a price | wall | CPU | score above ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for limits in ("pressing", "typical"):
        rows = [row for row in sections["big"] if f" {limits} " in row["case"]]
        for solver in ("ours", "HiGHS", "CBC"):
            own = [row for row in rows if row["solver"] == solver]
            if not own:
                continue
            pressing = spread(column(own, "pressing"), "{:.0f}") if solver == "ours" else ""
            above = [r["score"] - cases(rows)[r["case"]]["ours"]["score"] for r in own if r["score"] is not None]
            shown = "none found" if not above else f"{max(above):.2e}"
            lines.append(
                f"| {limits} | {solver}, {len(own)} seeds | {proven(own)} | {pressing} | "
                f"{spread(column(own, 'wall_s'))} | {spread(column(own, 'cpu_s'))} | {shown} |"
            )
    return [*lines, ""]


def equal(sections: dict[str, list[Record]]) -> list[str]:
    """Equality with CBC."""
    off, unproven = differences(sections["equal"])
    found = [row for row in sections["equal"] if row["solver"] == "ours"]
    ratios = ratios_of(sections["equal"], "CBC")
    return [
        "## Equal to CBC",
        "",
        f"{len(found)} instances of 40 × 30 to 80 × 54 with one to three limits, half of them pressing; CBC told to "
        "look for anything better by 1e-12 (`increment`; its default is 1e-5). Each choice was summed anew in floating "
        "point.",
        "",
        f"Ours proved {proven(found)}. CBC proved {len(off)}; there the optima are at most {max(off):.1e} apart. On "
        f"the {len(unproven)} that CBC did not prove in time, its best is "
        + (f"{min(unproven):.1e} to {max(unproven):.1e} above ours" if unproven else "not in question")
        + f". CPU over ours: {spread(ratios, '{:.1f}')}.",
        "",
    ]


def table(sections: dict[str, list[Record]]) -> list[str]:
    """Which solver."""
    rows = sections["table"]
    names = list(cases(rows))
    lines = [
        "## Which solver: 80 × 54, pressing, 60 s each",
        "",
        "CPU seconds, and where not proven, how far the score is above ours.",
        "",
        "| solver | " + " | ".join(f"seed {name.split()[1]}" for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for solver in dict.fromkeys(row["solver"] for row in rows):
        cells = []
        for name in names:
            row, own = cases(rows)[name][solver], cases(rows)[name]["ours"]
            above = "nothing found" if row["score"] is None else f"{row['score'] - own['score']:+.1e}"
            is_plain = row["is_proven"] and abs(row["score"] - own["score"]) <= SAME
            cells.append(f"{row['cpu_s']:.2f}" + ("" if is_plain else f" ({row['status']}, {above})"))
        lines.append(f"| {solver} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def rules(sections: dict[str, list[Record]]) -> list[str]:
    """Decisions and rules."""
    lines = [
        "## Decisions and rules, typical limits",
        "",
        "Batches: 80 × 54, each of two loads at one of four batches, 16 ways to choose from. Rules: 20 s at most.",
        "",
        "| case | seeds | status | wall | CPU | gap left, of the score |",
        "|---|---|---|---|---|---|",
    ]
    by_kind: dict[str, list[Record]] = {}
    for row in sections["rules"]:
        by_kind.setdefault(row["case"].rpartition(" ")[0], []).append(row)
    for kind, rows in by_kind.items():
        counts = {
            status: sum(row["status"] == status for row in rows) for status in dict.fromkeys(column(rows, "status"))
        }
        left = [row["gap"] / row["score"] for row in rows if row["status"] == "Feasible"]
        lines.append(
            f"| {kind} | {len(rows)} | {', '.join(f'{n} {status}' for status, n in counts.items())} | "
            f"{spread(column(rows, 'wall_s'))} | {spread(column(rows, 'cpu_s'))} | "
            f"{spread(left, '{:.1e}') if left else ''} |"
        )
    return [*lines, ""]
