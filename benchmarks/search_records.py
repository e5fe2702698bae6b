"""What `search.py` measured, set against each other: ours and peers, case by case."""

import statistics
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

Record = dict[str, Any]
SAME = 1e-9
"""Scores closer than this are equal."""


def made_when(rows: Sequence[Record]) -> str:
    """When records were made, and how far apart those that are set against each other."""
    at = [datetime.fromisoformat(row["at"]) for row in rows]
    apart = [
        abs(datetime.fromisoformat(row["at"]) - datetime.fromisoformat(found["ours"]["at"])).total_seconds() / 60
        for found in cases(rows).values()
        for row in found.values()
    ]
    return (
        f"Measured from {min(at):%H:%M} to {max(at):%H:%M} UTC; ours and a peer on one instance up to "
        f"{max(apart):.0f} minutes apart, for what was measured before is kept while the search changes."
    )


def cases(rows: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """By case, then by solver."""
    found: dict[str, dict[str, Record]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["solver"]] = row
    return found


def column(rows: Sequence[Record], name: str) -> list[Any]:
    """One number of every record."""
    return [row[name] for row in rows]


def proven(rows: Sequence[Record]) -> str:
    """How many."""
    return f"{sum(row['is_proven'] for row in rows)} of {len(rows)}"


def ratios_of(rows: Sequence[Record], solver: str) -> list[float]:
    """CPU seconds of a solver over ours, instance by instance."""
    return [found[solver]["cpu_s"] / found["ours"]["cpu_s"] for found in cases(rows).values() if solver in found]


def num_different(rows: Sequence[Record], solver: str) -> int:
    """Instances on which a solver's score is not ours."""
    scores = [(found[solver]["score"], found["ours"]["score"]) for found in cases(rows).values()]
    return sum(score is None or abs(score - own) > SAME for score, own in scores)


def pool_ratios(rows: Sequence[Record]) -> list[tuple[str, float, float]]:
    """For every pool of CBC: CPU seconds over ours, and how far objectives are apart at most.

    Where CBC was stopped, it had not found its next choice in all its seconds; ours until that choice are set against.
    """
    found: list[tuple[str, float, float]] = []
    for case, both in cases(rows).items():
        if "CBC" in both:
            own, peer = both["ours"], both["CBC"]
            off = max((abs(a - b) for a, b in zip(peer["scores"], own["scores"], strict=False)), default=0.0)
            until = min(len(peer["scores"]), len(own["scores"]) - 1)
            found.append((case, peer["cpu_s"] / own["after_cpu_s"][until], off))
    return found


def differences(rows: Sequence[Record]) -> tuple[list[float], list[float]]:
    """How far CBC's optimum is from ours where both are proven, and how far above where CBC did not prove it."""
    off, unproven = [], []
    for found in cases(rows).values():
        own, peer = found["ours"], found["CBC"]
        if own["is_proven"] and peer["is_proven"]:
            off.append(abs(own["score"] - peer["score"]))
        elif peer["score"] is not None:
            unproven.append(peer["score"] - own["score"])
    return off, unproven


def spread(values: Sequence[float], form: str = "{:.3g}") -> str:
    """Median, least and most."""
    show: Callable[[float], str] = form.format
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"
