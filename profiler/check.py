"""Finds measurements that no device can have made: faster than the ceilings that were measured on it.

A utilisation above 1 is what a confusion of units or of variants looks like. Only what is certain is held against a
row: its products at the device's rate; its weights at the speed of the cache where that was measured; and what of them
no cache has room for at the speed of memory. Of TensorRT's products, which it may sum up in fewer bits than torch did
when the rate was measured, and of times that were read in, whose formats are another runtime's own, all are held
against the fastest rate of any.
"""

from dataclasses import dataclass, replace

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.profile import IMPORTED, OperatorRow, Profile, TimeRow, WholeRow, is_imported, parent_of
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
from blockwright.profiler.served_costs import storage_of
from blockwright.profiler.serving_operators import Step, step_operators
from blockwright.spec import FFN, Block, Mixer, Model, parse_format, with_format

MOST_UTILISATION = 1.05
_SLACK_S = 5e-6
"""A part's time is a difference of two, and may come out too small by about this much on a busy machine."""
_CLASSES: dict[str, type[Matmul] | type[Attend] | type[Elementwise]] = {
    "matmul": Matmul,
    "attend": Attend,
    "elementwise": Elementwise,
}
Timed = TimeRow | WholeRow | OperatorRow


@dataclass(frozen=True, slots=True, kw_only=True)
class TooFast:
    """A row, and what the device needs for it at the very least."""

    row: Timed
    least_s: float

    def __str__(self) -> str:
        return (
            f"{describe(self.row)}: {self.row.time_s:.3g} s, where the profile's own ceilings allow no less than "
            f"{self.least_s:.3g} s"
        )


def too_fast(profile: Profile) -> tuple[TooFast, ...]:
    """The measured times, of whatever backend, that are below what the profile's ceilings allow."""
    found: list[TooFast] = []
    for row in (*profile.times, *profile.wholes, *profile.operators):
        if row.origin == "measured":
            least_s = least_time_of(profile, row)
            if least_s > MOST_UTILISATION * row.time_s + _SLACK_S * isinstance(row, TimeRow):
                found.append(TooFast(row=row, least_s=least_s))
    return tuple(found)


def check_utilisation(profile: Profile) -> None:
    """Holds every measured time against the profile's ceilings.

    Raises:
        InputError: a row is faster than the device; names it.
    """
    found = too_fast(profile)
    if found:
        first = found[0]
        others = f", and {len(found) - 1} more rows like it" if len(found) > 1 else ""
        raise InputError(
            f"profile {profile.name}: {describe(first.row)}, time_s",
            got=f"{first.row.time_s:.3g} s{others}",
            expected=f"at least the {first.least_s:.3g} s that the profile's own ceilings allow",
            remedy="Either is in another unit, of something else or disturbed: measure again.",
        )


def least_time_of(profile: Profile, row: Timed) -> float:
    """What the work of a row takes on a profile's device at the very least."""
    if isinstance(row, WholeRow) and is_imported(profile, row.backend):
        return _least_imported_s(profile, row)
    operators, ceilings = operators_of(profile, row), profile.ceilings
    if row.backend in IMPORTED:
        fastest = max(ceilings.flop_per_s.values(), key=lambda rate: rate.high)
        names = {each.weights for each in operators if isinstance(each, Matmul)}
        ceilings = replace(ceilings, flop_per_s=ceilings.flop_per_s | dict.fromkeys(names, fastest))
    return least_time_s(operators, ceilings)


def model_of(profile: Profile, row: WholeRow) -> Model:
    """The model that a row was measured of."""
    weights = parse_format(row.format)
    layers = []
    for names in row.layers:
        mixer, ffn = parse_variant("mixer", names[0], weights), parse_variant("ffn", names[1], weights)
        assert isinstance(mixer, Mixer) and isinstance(ffn, FFN)
        layers.append(Block(mixer=mixer, ffn=ffn))
    return replace(with_format(parent_of(profile), weights), layers=tuple(layers))


def least_time_s(operators: list[Operator], ceilings: Ceilings) -> float:
    """What some operators take at the very least, one after another."""
    weight_bytes = sum(each.weight_bytes for each in operators if isinstance(each, Matmul))
    from_memory_s = _beyond_cache(weight_bytes, ceilings) / ceilings.read_bytes_per_s.high
    return max(from_memory_s, sum(_least_s(each, ceilings) for each in operators))


def operators_of(profile: Profile, row: Timed) -> list[Operator]:
    """What a row measured, operator by operator."""
    if isinstance(row, OperatorRow):
        return [operator_of(row)]
    if isinstance(row, TimeRow):
        weights = parse_format(row.format)
        model = with_format(parent_of(profile), weights)
        return _of_part(model, parse_variant(row.part, row.variant, weights), row)
    model = model_of(profile, row)
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
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


def _beyond_cache(num_bytes: float, ceilings: Ceilings) -> float:
    """What of some bytes cannot be in the cache whatever ran before; nothing where its size is not known."""
    return 0.0 if ceilings.cache_bytes is None else max(0.0, num_bytes - ceilings.cache_bytes)


def _least_imported_s(profile: Profile, row: WholeRow) -> float:
    """Products at the fastest rate there is, or reading weights and caches once: the longer of the two."""
    model, point, ceilings = model_of(profile, row), row.point, profile.ceilings
    step = Step(sequences=point.batch, context=point.slots)
    if point.new_tokens > 1:
        step = Step(sequences=0, context=0, prompts=point.batch, prompt_tokens=point.new_tokens)
    weights = parse_format(row.format)
    storage = storage_of(weights)
    if weights.group_size is not None:  # others keep smaller scales than we do: the integers alone are certain
        bits = float(weights.name.removeprefix("int"))
        storage = replace(storage, bits=bits, head_bits=bits)
    counted = step_operators(model, step, storage, storage.product_on(ceilings))
    flop = sum(each.flop * times for each, times in counted.items() if isinstance(each, Matmul))
    read_bytes = sum(each.weight_bytes * times for each, times in counted.items() if isinstance(each, Matmul))
    read_bytes += sum(each.num_bytes * times for each, times in counted.items() if isinstance(each, Attend))
    products_s = flop / max(rate.high for rate in ceilings.flop_per_s.values())
    may_stay = ceilings.cache_bytes is None or read_bytes <= 2 * ceilings.cache_bytes
    return max(products_s, 0.0 if may_stay else read_bytes / ceilings.read_bytes_per_s.high)


def describe(row: Timed) -> str:
    """Which measurement a row is, in words."""
    if isinstance(row, OperatorRow):
        return f"operator {row.kind} {row.fields}"
    what = f"{row.part} {row.variant}" if isinstance(row, TimeRow) else f"a whole model of {len(row.layers)} layers"
    return f"{what} in {row.format} at batch {row.point.batch}, {row.point.new_tokens} new, {row.point.slots} slots"
