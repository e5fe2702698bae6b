"""What a profile knows, as plain data: who the device is, its ceilings, what was measured, how well it foretells."""

from collections import Counter
from typing import Any

from blockwright.cost import ORIGINS
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.datasheet_profile import is_datasheet
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline.marks import marks_of
from blockwright.profiler.check import operators_of
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator
from blockwright.report.roofline import Dot, Roofline
from blockwright.strict import to_data


def profile_to_data(profile: Profile) -> dict[str, Any]:
    """All but the rows themselves, which are counted by kind and origin."""
    return {
        "name": profile.name,
        "is_datasheet": is_datasheet(profile),
        "created": profile.created,
        "num_threads": profile.num_threads,
        "device": to_data(profile.device),
        "conditions": to_data(profile.conditions),
        "software": profile.software,
        "parent": None if profile.model is None else _shape(profile),
        "ceilings": to_data(profile.ceilings),
        "method": to_data(profile.method),
        "coverage": to_data(profile.coverage),
        "rows": row_counts(profile),
        "marked": list(marks_of(profile)),
        "accuracy": to_data(profile.accuracy),
    }


def row_counts(profile: Profile) -> dict[str, dict[str, int]]:
    """Rows of each kind by where they come from; kinds without any, and origins without any, are left out."""
    kinds = {
        "part": profile.times,
        "whole": profile.wholes,
        "memory": profile.memory,
        "operator": profile.operators,
    }
    counts = {kind: Counter(row.origin for row in rows) for kind, rows in kinds.items() if rows}
    return {kind: {origin: n[origin] for origin in ORIGINS if n[origin]} for kind, n in counts.items()}


def named_ceilings(profile: Profile) -> dict[str, tuple[Figure, str]]:
    """The figures that are known, with their units, by names for people."""
    ceilings = profile.ceilings
    rates = {f"products in {name}": (figure, "FLOP/s") for name, figure in ceilings.flop_per_s.items()}
    others = {
        "reads from the cache": (ceilings.cache_read_bytes_per_s, "B/s"),
        "begins an operator": (ceilings.launch_s, "s"),
        "power, idle": (ceilings.idle_w, "W"),
        "power, at work": (ceilings.busy_w, "W"),
    }
    known = {name: (figure, unit) for name, (figure, unit) in others.items() if figure is not None}
    return {"reads from memory": (ceilings.read_bytes_per_s, "B/s")} | rates | known


def roofline_of(profile: Profile) -> Roofline:
    """Where everything measured lies below the ceilings."""
    rows = [*profile.times, *profile.operators]
    dots = [dot for row in rows if (dot := _dot(operators_of(profile, row), row.time_s)) is not None]
    return Roofline(name=profile.name, ceilings=profile.ceilings, dots=tuple(dots))


def _dot(operators: list[Operator], time_s: float) -> Dot | None:
    """A part, or an operator; none of what took no time or does no products worth the name."""
    num_bytes, flop = sum(each.num_bytes for each in operators), sum(each.flop for each in operators)
    if not (time_s > 0 and num_bytes > 0 and flop > 0):
        return None
    return Dot(kind=_kind(operators), flop_per_byte=flop / num_bytes, flop_per_s=flop / time_s)


def _kind(operators: list[Operator]) -> str:
    if any(isinstance(each, Attend) for each in operators):
        return "attention"
    if len(operators) == 1 and isinstance(operators[0], Elementwise):
        return "elementwise"
    return "products" if any(isinstance(each, Matmul) for each in operators) else "elementwise"


def _shape(profile: Profile) -> dict[str, Any]:
    model = profile.model
    assert model is not None
    return {
        "family": model.family,
        "hidden_size": model.hidden_size,
        "num_heads": model.num_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "num_layers": len(model.layers),
    }
