"""What race.py found, for people."""

import statistics
from collections.abc import Iterator
from typing import Any

import kernels_gpu_page

REFERENCE, PEER = "torch eager, fp16", "torch.compile, fp16"
Case = tuple[str, int, int]


def as_text(results: dict[str, Any]) -> str:
    """What the machine is, who played, a table per case, and the kernels' page."""
    where = results["accelerator"] or "a CPU: this tries the script out and says nothing of a GPU"
    lines = [f"# TensorRT, torch and ONNX Runtime on {where}, {results['date']}", ""]
    lines += [f"`{results['command']}` at {results['commit']}.", ""]
    if results["gpu"]:
        lines.append("- GPU: " + ", ".join(f"{name} {said}" for name, said in results["gpu"].items()))
    lines.append("- versions: " + ", ".join(f"{name} {said}" for name, said in results["versions"].items() if said))
    lines += [f"- {_chip(found, results['capability'])}" for found in results["probes"].values()]
    lines += ["", *_contestants(results), "", *_races(results)]
    return "\n".join([*lines, *_kernels(results["kernels"]), ""])


def _chip(found: dict[str, Any], capability: str | None) -> str:
    """Whether a TensorRT takes the chip."""
    if "came" not in found:
        return f"{found['title']}: not tried; {_line(found['why'])}"
    words = "takes" if found["why"] is None else "does not take"
    said = f"{found['title']} {words} {capability}: {', '.join(found['came']) or 'not built'}"
    return said if found["why"] is None else f"{said}; then {_line(found['why'])}"


def _contestants(results: dict[str, Any]) -> Iterator[str]:
    if results["unchecked"] is not None:
        yield (
            f"**Nobody's logits were compared**, for {REFERENCE} did not tell its own: {_line(results['unchecked'])}. "
            "The times below may be of models that compute something else."
        )
    else:
        yield (
            f"Logits must agree with those of {REFERENCE} (its weights rounded as the contestant's are) to "
            f"{results['tolerance']:.0e} of their spread: after each prompt and context that is timed, at each number "
            "of texts at once, and after a few tokens behind the contexts."
        )
    yield ""
    yield "| contestant | came | set up in, s | logits off by | what else |"
    yield "|---|---|---|---|---|"
    for row in results["contestants"]:
        came = row.get("came", {})
        stages = [word for word in ("opened", "tried", "compared") if word in came]
        differences = came.get("compared", {}).get("differences", {})
        off = f"{max(differences.values()):.1e}" if differences else "–"
        took = f"{came['tried']['set_up_s']:.0f}" if "tried" in came else "–"
        said = [_line(row["why"])] if row["why"] else []
        said += [f"{_words(each['case'])}: {_line(each['why'])}" for each in came.get("tried", {}).get("failed", ())]
        nodes = came.get("opened", {}).get("facts", {}).get("nodes", {})
        said += [f"{count} nodes on {provider}" for provider, count in nodes.items()]
        yield f"| {row['name']} | {', '.join(stages) or 'not started'} | {took} | {off} | {'; '.join(said)} |"


def _races(results: dict[str, Any]) -> Iterator[str]:
    rates = [each["copy_bytes_per_s"] for each in results["rounds"] if each["copy_bytes_per_s"]]
    yield f"{len(results['rounds'])} rounds."
    if rates:
        yield (
            f"A copy moved {statistics.median(rates) / 1e9:,.0f} GB/s ({min(rates) / 1e9:,.0f} to "
            f"{max(rates) / 1e9:,.0f}). Shares are of what a step reads at least, weights as stored and caches, at "
            "this rate in the same round."
        )
    yield (
        "Times are medians; ratios are of the same round, with their range. A prompt's time goes from its tokens on "
        "the host to the first new one there; caches of a fixed size, graphs and buffers were made before, and only "
        "transformers' cache, which grows, is made within it. Plans of TensorRT have room for the longest text and "
        "read all of it; torch.compile's caches are as long as each text needs."
    )
    cases = dict.fromkeys(
        (row["what"], row["tokens"], row["batch"]) for each in results["rounds"] for row in each["times"]
    )
    for case in cases:
        yield ""
        yield f"## {_title(case)}"
        yield ""
        yield (
            "| by | parent, ms | child, ms | child is times as fast | parent's, child's share of the copy's rate | "
            f"times as fast as {PEER}: parent | child | times as fast as the same in fp16: parent | child |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for row in results["contestants"]:
            times = {model: _times(results, row["name"], model, case) for model in ("parent", "child")}
            if any(times["parent"]) or any(times["child"]):
                yield _row(results, row, case, times)


def _row(results: dict[str, Any], row: dict[str, Any], case: Case, times: dict[str, list[float | None]]) -> str:
    cells = [_median(times[model]) for model in ("parent", "child")]
    cells.append(_ratio(times["parent"], times["child"]))
    shares = [_share(results, row, model, case, times[model]) for model in ("parent", "child")]
    cells.append(", ".join(shares) if case[0] == "decode" else "–")
    for peer in (PEER, row["name"].split(", ")[0] + ", fp16"):
        for model in ("parent", "child"):
            slow = _times(results, peer, model, case)
            cells.append("–" if row["name"] == peer else _ratio(slow, times[model]))
    return f"| {row['name']} | " + " | ".join(cells) + " |"


def _times(results: dict[str, Any], name: str, model: str, case: Case) -> list[float | None]:
    """Of each round; None where there is none."""
    wanted = (name, model, *case)
    found = []
    for each in results["rounds"]:
        rows = {(r["contestant"], r["model"], r["what"], r["tokens"], r["batch"]): r for r in each["times"]}
        found.append(rows.get(wanted, {}).get("time_s"))
    return found


def _share(results: dict[str, Any], row: dict[str, Any], model: str, case: Case, times: list[float | None]) -> str:
    _, tokens, batch = case
    least = {(e["model"], e["tokens"], e["batch"]): e["bytes"] for e in row["came"]["tried"]["least"]}
    num_bytes, rates = least.get((model, tokens, batch)), [each["copy_bytes_per_s"] for each in results["rounds"]]
    shares = [
        num_bytes / time_s / rate for time_s, rate in zip(times, rates, strict=True) if time_s and rate and num_bytes
    ]
    return f"{statistics.median(shares):.0%}" if shares else "–"


def _median(times: list[float | None]) -> str:
    known = [each for each in times if each is not None]
    return f"{1e3 * statistics.median(known):.2f}" if known else "–"


def _ratio(slow: list[float | None], fast: list[float | None]) -> str:
    ratios = [one / other for one, other in zip(slow, fast, strict=True) if one and other]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"


def _title(case: Case) -> str:
    what, tokens, batch = case
    words = f"A token behind {tokens} others" if what == "decode" else f"A prompt of {tokens}"
    return words + (f", {batch} texts at once" if batch > 1 else "")


def _words(case: list[Any]) -> str:
    model, what, tokens, batch = case
    return f"{model}, {what} of {tokens}, batch {batch}"


def _line(said: str) -> str:
    """The first line of what was said, fit for a table's cell."""
    return (said.strip().splitlines() or ["nothing said"])[0].replace("|", "/")


def _kernels(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    if "rows" not in found:
        return ["", "## Our Triton kernels", "", f"Not measured: {found['why']}"]
    return ["", "#" + kernels_gpu_page.as_text(found).rstrip()]
