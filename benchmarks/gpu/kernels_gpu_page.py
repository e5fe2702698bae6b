"""What kernels_gpu.py found, for people."""

from typing import Any


def as_text(results: dict[str, Any]) -> str:
    """A row per contestant."""
    worst = max(results["checks"], key=lambda each: each["error"])
    where = results["accelerator"] or "a CPU by Triton's interpreter: times are worth nothing"
    lines = [
        f"# Our Triton kernels on {where}, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']}; Triton {results['triton']}.",
        "",
        f"{len(results['checks'])} cases agree with their naive twins; the worst is off by {worst['error']:.1e} of the "
        f"largest value ({worst['case']}).",
        "",
        f"A large copy moves {results['copy_bytes_per_s'] / 1e9:,.0f} GB/s. The share is that of what must be read at "
        "least, at this rate, in the time that was taken.",
        "",
        "| what | by | µs, median (range) | share of the copy's rate | times as fast as the peer (range) |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        for name, each in row["contestants"].items():
            low, high = (1e6 * value for value in each["time_s_range"])
            slow, fast = each["times_as_fast_range"]
            ratio = "peer" if name == row["peer"] else f"{each['times_as_fast']:.2f} ({slow:.2f} to {fast:.2f})"
            share = "–" if row["what"] == "prefill" else f"{each['share_of_copy']:.0%}"
            lines.append(
                f"| {_words(row)} | {name} | {1e6 * each['time_s']:.1f} ({low:.1f} to {high:.1f}) | {share} | {ratio} |"
            )
        for name, why in row["failed"].items():
            lines.append(f"| {_words(row)} | {name} | failed: {why} | | |")
    return "\n".join([*lines, ""])


def _words(row: dict[str, Any]) -> str:
    match row["what"]:
        case "product":
            return f"{row['inputs']} × {row['outputs']}, {row['rows']} rows"
        case "decode":
            return f"decode, {row['kept']} of {row['slots']} slots, batch {row['batch']}; dense by {row['dense_by']}"
        case _:
            return f"prompt of {row['tokens']}, {row['far']} far, {row['neighbours']} near; dense by {row['dense_by']}"
