"""What tensorrt_gpu.py found, for people."""

from typing import Any


def as_text(results: dict[str, Any]) -> str:
    """Whether each TensorRT takes the chip, then a row per race, then what went no further."""
    where = results["accelerator"] or "no GPU: this tries the script out and says nothing of one"
    lines = [f"# Our children in TensorRT on {where}, {results['date']}", ""]
    lines += [f"`{results['command']}` at {results['commit']}, for {results['capability']}.", ""]
    for row in results["rows"]:
        if row["is_probe"]:
            builds_only = "built" in row and results["accelerator"] is None
            is_taken = "takes" if row["why"] is None else "builds for" if builds_only else "does not take"
            lines.append(f"- {_package(results, row)} {is_taken} {results['capability']}: {_how_far(row)}")
    lines += [
        "",
        f"Logits must agree with torch's in fp16 to {results['tolerance']:.0e} of their standard deviation.",
        "",
        "| by | weights | what | parent, ms | child, ms | child is times as fast (range) | times fewer bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        for race in () if row["is_probe"] else row.get("races", ()):
            parent, child = (f"{1e3 * race['time_s'][name]:.2f}" for name in ("parent", "child"))
            low, high = race["times_as_fast_range"]
            is_decode = race["what"] == "decode"
            what = f"a token behind {race['tokens']}" if is_decode else f"a prompt of {race['tokens']}"
            ratio = f"{race['times_as_fast']:.2f} ({low:.2f} to {high:.2f})"
            fewer = f"{race['times_fewer_bytes']:.2f}" if is_decode else "–"
            by = f"{_package(results, row)} | {row['format']}"
            lines.append(f"| {by} | {what} | {parent} | {child} | {ratio} | {fewer} |")
    failures = [row for row in results["rows"] if row["why"] is not None and not row["is_probe"]]
    if failures:
        lines += ["", "Not measured:", ""]
        lines += [f"- {_package(results, row)}, {row['format']}: {_how_far(row)}" for row in failures]
    return "\n".join([*lines, ""])


def _package(results: dict[str, Any], row: dict[str, Any]) -> str:
    return f"{row['package']} {results['versions'][row['package']]}"


def _how_far(row: dict[str, Any]) -> str:
    came = [word for word in ("built", "opened", "largest_difference", "races") if word in row]
    words = {"largest_difference": "compared", "races": "timed"}
    far = ", ".join(words.get(word, word) for word in came) or "not built"
    return far if row["why"] is None else f"{far}; then {row['why']}"
