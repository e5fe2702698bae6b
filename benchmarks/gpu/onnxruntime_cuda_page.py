"""What onnxruntime_cuda.py found, for people."""

from collections import Counter
from typing import Any


def as_text(results: dict[str, Any]) -> str:
    """A row per race, then a row per engine and provider."""
    where = results["accelerator"] or "a CPU: this tries the script out and says nothing of a GPU"
    rows = results["rows"]
    lines = [
        f"# Our graphs in ONNX Runtime on {where}, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']}; onnxruntime {results['onnxruntime']}.",
        "",
        f"Logits must agree with the CPU's to {results['tolerance']:.0e} of their standard deviation, which "
        f"{len(rows)} pairs of engines do{_worst(rows)}. Bytes are those of the weights as stored and of the cache, "
        "which a token reads at least. ONNX Runtime makes fp32 of fp16 weights when it opens a graph, so of those it "
        "reads more.",
        "",
        "| flavour | weights | what | parent, ms | child, ms | child is times as fast (range) | times fewer bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for race in row["races"]:
            parent, child = (f"{1e3 * race['time_s'][name]:.2f}" for name in ("parent", "child"))
            low, high = race["times_as_fast_range"]
            fewer = f"{race['times_fewer_bytes']:.2f}" if race["what"] == "decode" else "–"
            ratio = f"{race['times_as_fast']:.2f} ({low:.2f} to {high:.2f})"
            what = f"a token behind {race['tokens']}" if race["what"] == "decode" else f"a prompt of {race['tokens']}"
            lines.append(f"| {row['flavour']} | {row['format']} | {what} | {parent} | {child} | {ratio} | {fewer} |")
    lines += [
        "",
        "Nodes as the providers took them, before what they fuse (DequantizeLinear and MatMul become MatMulNBits):",
        "",
        "| flavour | weights | model | provider | nodes |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        for name, providers in row["nodes"].items():
            for provider, nodes in sorted(providers.items()):
                listed = ", ".join(f"{count} {operator}" for operator, count in Counter(nodes).most_common())
                lines.append(f"| {row['flavour']} | {row['format']} | {name} | {provider} | {listed} |")
    if results["failures"]:
        lines += ["", "Not measured:", ""]
        lines += [f"- {each['flavour']}, {each['format']}: {each['why']}" for each in results["failures"]]
    return "\n".join([*lines, ""])


def _worst(rows: list[dict[str, Any]]) -> str:
    errors = [error for row in rows for error in row["largest_difference"].values()]
    return f"; the worst is off by {max(errors):.1e}" if errors else ""
