"""What `orderings.py` found, for people."""

from typing import Any

_NONE = (
    "No BLD is a library that trained at a rate of 0: its candidates are as they begin, and they begin fitted, by "
    "least squares where there is a matrix to fit."
)


def as_text(results: dict[str, Any]) -> str:
    """The results for people."""
    lines = [
        f"# Published orderings, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']}",
        "",
        _NONE,
        "",
    ]
    for one in results["parents"]:
        lines += [
            f"## {one['name']}: {one['seeds']} seeds, BLD {one['bld_tokens']:,} tokens, GKD {one['gkd_tokens']:,} "
            f"at {one['gkd_learning_rate']}, {one['budget']}",
            "",
            "| claim | KL of the better | of the other | difference (95 %), margin included | by seed | |",
            "|---|---|---|---|---|---|",
        ]
        for row in one["claims"]:
            ends = row["difference"]
            verdict = "reproduced" if row["is_reproduced"] else "not reproduced at this scale"
            lines.append(
                f"| {row['claim']} | {row['better_kl']:.4f} | {row['worse_kl']:.4f} | {ends['value']:+.4f} "
                f"({ends['low']:+.4f} to {ends['high']:+.4f}) | "
                + ", ".join(f"{mean:+.4f}" for mean in row["by_seed"])
                + f" | {verdict} |"
            )
        lines.append("")
    return "\n".join(lines)
