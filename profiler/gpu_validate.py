"""Whole models on a GPU against what the profile foretold of them. Apart from the rest, for it needs scipy.

Times are tried wherever they were measured; memory where the profile has some of the same format, and a child was
weighed.
"""

from collections.abc import Sequence

from blockwright.cost import Load, Quantity
from blockwright.hw_profiles.profile import MemoryRow, Profile, WholeRow
from blockwright.hw_profiles.provenance import AccuracyRow
from blockwright.profiler.cost_model import part_costs, reaches_of
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.profiler.validate import Trial, accuracy_of
from blockwright.spec import Model

_POINTS = {"time_per_token": decode_points, "time_to_first_token": prefill_points}


def validate(
    profile: Profile, load: Load, measured: Sequence[tuple[Model, Sequence[WholeRow | MemoryRow]]]
) -> tuple[AccuracyRow, ...]:
    """How well models that the profile does not know were foretold.

    Args:
        profile: what foretells.
        load: the workload; its prompt is one chunk.
        measured: each model with its times at the points of the load, and with its memory where it was weighed.
    """
    trials = []
    for quantity in ("time_per_token", "time_to_first_token"):
        (point,) = _POINTS[quantity](load)
        for model, rows in measured:
            row = next(row for row in rows if isinstance(row, WholeRow) and row.point == point)
            trials.append(_trial(profile, load, quantity, model, row))
    weighed = {(row.backend, row.format) for row in profile.memory}
    trials += [
        _trial(profile, load, "memory", model, row)
        for model, rows in measured
        for row in rows
        if isinstance(row, MemoryRow) and (row.backend, row.format) in weighed
    ]
    return accuracy_of(trials)


def _trial(profile: Profile, load: Load, quantity: Quantity, model: Model, row: WholeRow | MemoryRow) -> Trial:
    reaches = reaches_of(block.mixer for block in model.layers)
    foretold = part_costs(profile, model, load, quantity, row.backend, reaches=reaches).of_model(model)
    measured = row.peak_bytes if isinstance(row, MemoryRow) else row.time_s
    return Trial(quantity=quantity, format=row.format, foretold=foretold, measured=measured)
