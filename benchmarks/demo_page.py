"""What `demo.py` found, for people."""

import statistics
from collections.abc import Callable
from typing import Any


def as_text(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    device, demo = results["device"], results["demo"]
    head = [
        f"# The demo, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} on {device['model']}, {device['num_cores']} cores, "
        f"{device['memory_bytes'] / 2**30:.0f} GiB; "
        + ", ".join(f"{package} {version}" for package, version in results["software"].items())
        + ".",
        "",
        f"Demo: {demo['seconds']:.0f} s, peak {demo['peak_bytes'] / 2**30:.2f} GiB in its largest process. Stages: "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in demo["stage_seconds"].items())
        + ".",
        "",
        f"`blockwright --help`: median {statistics.median(results['help_s']):.3f} s "
        f"({min(results['help_s']):.3f} to {max(results['help_s']):.3f}, {len(results['help_s'])} runs).",
        "",
    ]
    return "\n".join([*head, *rounds_text(results), *plans_text(results), *library_text(results)]) + "\n"


def rounds_text(results: dict[str, Any]) -> list[str]:
    """Parent and child in turn."""
    num_rounds = 1 + max(row["round"] for row in results["rounds"])
    lines = [
        f"## Parent and child in turn, {num_rounds} rounds: median (least to most)",
        "",
        "| format | cost | parent | child | parent / child | child, measured over promised | parent, the same "
        "| the one over the other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["format"], row["quantity"], row["load"]) for row in results["rounds"]):
        rows = [row for row in results["rounds"] if (row["format"], row["quantity"], row["load"]) == key]
        shown = [
            spread([row["parent"] for row in rows], "{:.4g}"),
            spread([row["child"] for row in rows], "{:.4g}"),
            spread([row["parent"] / row["child"] for row in rows], "{:.3f}"),
        ]
        off = {
            name: [row[name] / row[f"promised_{name}"] for row in rows if row[f"promised_{name}"]]
            for name in ("child", "parent")
        }
        off["beside"] = [child / parent for child, parent in zip(off["child"], off["parent"], strict=True)]
        shown += [spread(ratios, "{:.3f}") if ratios else "not planned for" for ratios in off.values()]
        lines.append(f"| {key[0]} | {key[1]} at {key[2]} | " + " | ".join(shown) + " |")
    bandwidth = results["ceilings"]["read_bytes_per_s"]["value"]
    weights = {r["quantity"]: 4 * r["parent"] for r in results["rounds"] if r["quantity"] == "parameters"}["parameters"]
    lines += [
        "",
        f"Seconds, bytes, parameters. The parent is off by what the machine was when it was profiled and when it was "
        f"measured. Memory gives {bandwidth / 1e9:.1f} GB/s: reading the parent's fp32 weights from it once would take "
        f"{weights / bandwidth * 1e6:.0f} µs; a model of this size stays in the caches.",
        "",
    ]
    return lines


def plans_text(results: dict[str, Any]) -> list[str]:
    """The solver's plan and others."""
    lines = [
        "## Plans at equal budget, before distillation: KL to the parent on held-out text, nats per token (95 %)",
        "",
        "| plan | sum of scores | KL | more than the solver's |",
        "|---|---|---|---|",
    ]
    for row in results["plans"]:
        if row["kl"] is None:
            lines.append(f"| {row['plan']} | none within the budgets | | |")
        else:
            shown = f"{interval(row['kl'])} | {interval(row['more_than_solver'])}"
            lines.append(f"| {row['plan']} | {row['sum_of_scores']:.4f} | {shown} |")
    return [*lines, ""]


def library_text(results: dict[str, Any]) -> list[str]:
    """With and without blockwise local distillation, before and after global distillation."""
    found = results["library"]
    lines = [
        "## Distillation: blockwise local (BLD) and global (GKD)",
        "",
        f"BLD {found['bld_tokens']:,} tokens, GKD {found['gkd_tokens']:,}, longer GKD "
        f"{found['longer_gkd_tokens']:,}: as many as both. The parent has "
        f"{interval(found['rows'][0]['parent_bits_per_byte'])} bits per byte.",
        "",
        "| child | KL | bits per byte | same next token |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        shown = " | ".join(interval(row[name]) for name in ("kl", "bits_per_byte", "agreement"))
        lines.append(f"| {row['child']} | {shown} |")
    lines += ["", "| paired difference | KL | bits per byte |", "|---|---|---|"]
    for row in found["differences"]:
        lines.append(f"| {row['of']} | {interval(row['kl'])} | {interval(row['bits_per_byte'])} |")
    return lines


def spread(values: list[float], form: str) -> str:
    """Median, least and most."""
    show: Callable[[float], str] = form.format
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"


def interval(estimate: dict[str, float]) -> str:
    """Value and interval."""
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
