"""Refuses measurements that no device can have made: faster than the ceilings that were measured on it.

A utilisation above 1 is what a confusion of units or of variants looks like. Only what is certain is held against a
row: its products at the device's rate, its weights at the speed of the cache where that was measured; never the speed
of memory, which small weights do not come from.
"""

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.profile import OperatorRow, Profile, TimeRow, WholeRow, parent_of
from blockwright.hw_profiles.variants import parse_variant
from blockwright.profiler.operators import (
    Attend,
    Elementwise,
    Matmul,
    Operator,
    ffn_operators,
    mixer_operators,
    shared_operators,
)
from blockwright.spec import FFN, Mixer, Model, parse_format, with_format

_MOST_UTILISATION = 1.05
_SLACK_S = 5e-6
"""A part's time is a difference of two, and may come out too small by about this much on a busy machine."""
_CLASSES: dict[str, type[Matmul] | type[Attend] | type[Elementwise]] = {
    "matmul": Matmul,
    "attend": Attend,
    "elementwise": Elementwise,
}


def check_utilisation(profile: Profile) -> None:
    """Holds every measured time against the profile's ceilings.

    Raises:
        InputError: a row is faster than the device; names it.
    """
    for row in (*profile.times, *profile.wholes, *profile.operators):
        # ONNX Runtime's ceilings say nothing of another backend's kernels.
        if row.origin == "measured" and row.backend == "onnxruntime":
            least_s = least_time_s(operators_of(profile, row), profile.ceilings)
            if least_s > _MOST_UTILISATION * row.time_s + _SLACK_S * isinstance(row, TimeRow):
                raise InputError(
                    f"profile {profile.name}: {_describe(row)}, time_s",
                    got=f"{row.time_s:.3g} s",
                    expected=f"at least the {least_s:.3g} s that the profile's own ceilings allow",
                    remedy="Either is in another unit, of something else or disturbed: measure again.",
                )


def least_time_s(operators: list[Operator], ceilings: Ceilings) -> float:
    """What some operators take at the very least, one after another."""
    return sum(_least_s(each, ceilings) for each in operators)


def operators_of(profile: Profile, row: TimeRow | WholeRow | OperatorRow) -> list[Operator]:
    """What a row measured, operator by operator."""
    if isinstance(row, OperatorRow):
        return [operator_of(row)]
    weights = parse_format(row.format)
    model = with_format(parent_of(profile), weights)
    if isinstance(row, TimeRow):
        return _of_part(model, parse_variant(row.part, row.variant, weights), row)
    parts = [
        parse_variant(part, name, weights)
        for names in row.layers
        for part, name in zip(("mixer", "ffn"), names, strict=True)
    ]
    return [*shared_operators(model, row.point), *(each for part in parts for each in _of_part(model, part, row))]


def operator_of(row: OperatorRow) -> Operator:
    """The operator that a row was measured of."""
    return _CLASSES[row.kind](**row.fields)  # type: ignore[arg-type]


def _of_part(model: Model, part: Mixer | FFN, row: TimeRow | WholeRow) -> list[Operator]:
    if isinstance(part, Mixer):
        return mixer_operators(model, part, row.point)
    return ffn_operators(model, part, row.point)


def _least_s(operator: Operator, ceilings: Ceilings) -> float:
    if not isinstance(operator, Matmul):
        return 0.0
    rate, speed = ceilings.flop_per_s.get(operator.weights), ceilings.cache_read_bytes_per_s
    return max(
        0.0 if rate is None else operator.flop / rate.high,
        0.0 if speed is None else operator.weight_bytes / speed.high,
    )


def _describe(row: TimeRow | WholeRow | OperatorRow) -> str:
    if isinstance(row, OperatorRow):
        return f"operator {row.kind} {row.fields}"
    what = f"{row.part} {row.variant}" if isinstance(row, TimeRow) else f"a whole model of {len(row.layers)} layers"
    return f"{what} in {row.format} at batch {row.point.batch}, {row.point.new_tokens} new, {row.point.slots} slots"
