"""What a model takes in a runtime of which whole models' times alone were read in: a sum over operators, scaled.

The operators' times are the device's own where they were measured, else those of its datasheet and the runtime's class
(`operator_costs`, `served_costs`). In each phase they are multiplied by what the anchors, whole models that were
measured, took over what these sums say of them:

    ratio = geometric mean of measured / foretold            over the anchors of a phase, in the formats asked for

Such a ratio knows the parent at the loads of the anchors, and that far it is as good as they agree: the half-width is
the largest of 2 %, the worst anchor's distance from the mean and the widest anchor's own interval. All else is a
difference, and of that no more is known than a datasheet tells: a share of it is added,

    of the part      its distance from the nearest of the parent's own parts, a removed one's from nothing included;
    of the load      the distance of the parent's time from its time at the nearest anchor, over the larger of the two.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from blockwright.cost import Cost, Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, Point, Profile, WholeRow, parent_of
from blockwright.profiler.check import MOST_UTILISATION, least_time_of, model_of
from blockwright.profiler.operator_costs import operator_costs
from blockwright.profiler.parts import PartCosts, Same, Source
from blockwright.profiler.served_costs import decode_phase, prefill_phase
from blockwright.profiler.time_model import decode_points, prefill_points
from blockwright.spec import Model, parse_format, with_format

_DIFFERENCE = 0.35
"""Of a difference that nobody measured: what nine of ten devices and models stayed within of a datasheet's prediction
with a compiled runtime (`serving_runtimes.COMPILED`)."""

_LEAST_HALF_WIDTH = 0.02
"""As in `time_model`: medians of the same model repeat within 2 %."""

_LEAST_SHARE = 0.01
"""Of a time that its interval is taken to reach down to: a logarithm has no nothing."""

ImportedPhase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ratio:
    """Measured over foretold, of the anchors of a phase."""

    value: float
    half_width: float
    """Of its logarithm."""
    anchors_s: tuple[float, ...]
    """What was foretold of them."""


def imported_phases(profile: Profile, backend: Backend) -> set[ImportedPhase]:
    """The phases that times of a runtime were read in of.

    Raises:
        InputError: of neither.
    """
    rows = [row for row in profile.wholes if row.backend == backend]
    if not rows:
        raise InputError(
            f"profile {profile.name}: {backend}",
            got="no times of it",
            expected="times of whole models, by its own benchmark",
            remedy="Read them in: blockwright profile import SOURCE RESULTS --for PARENT --into PROFILE.",
        )
    return {_phase_of(row.point) for row in rows}


def imported_times(source: Source, model: Model, load: Load, phase: ImportedPhase) -> PartCosts:
    """The time of a model's fixed part and of any mixer and ffn, in one phase of a load.

    Raises:
        InputError: no times were read in of this phase in one of the formats, or the sum cannot be told.
    """
    return _times(Same(source.profile), source.backend, source.formats, model, load, phase)


def imported_ratio(source: Source, phase: ImportedPhase) -> float:
    """What the anchors took over what is foretold of them.

    Raises:
        InputError: there are none of this phase in one of the formats.
    """
    return _ratio(Same(source.profile), source.backend, source.formats, phase).value


def check_imported(profile: Profile, row: WholeRow) -> None:
    """Refuses a whole model's time that the device cannot have made: a confusion of units, or of models.

    Its products are held against the fastest rate of any format, the bytes that it must read against the memory's
    speed, where they are too many to stay in the cache.

    Raises:
        InputError: it is faster than the device.
    """
    least_s = least_time_of(profile, row)
    if least_s > MOST_UTILISATION * row.time_s:
        raise InputError(
            f"{row.backend}, batch {row.point.batch}, {row.point.new_tokens} new tokens: time",
            got=f"{row.time_s:.3g} s for {len(row.layers)} layers in {row.format}",
            expected=f"at least the {least_s:.3g} s that {profile.name}'s own ceilings allow",
            remedy="It is in another unit, of another model, format or device: check --for, --into and the file.",
        )


@functools.lru_cache(maxsize=64)
def _times(
    key: Same, backend: Backend, formats: tuple[str, ...], model: Model, load: Load, phase: ImportedPhase
) -> PartCosts:
    """Kept, for a search asks for the same parts under every budget."""
    profile = key.profile
    ratio = _ratio(key, backend, formats, phase)
    sums = _sums(profile, backend, model, load, phase)
    parents = [with_format(parent_of(profile), parse_format(name)) for name in formats]
    own = [(parent, _sums(profile, backend, parent, load, phase)) for parent in parents]
    there_s = own[0][1].of_model(own[0][0]).value
    distance = min(1 - min(here, there_s) / max(here, there_s) for here in ratio.anchors_s)
    half_width = ratio.half_width + _DIFFERENCE * distance

    def cost(foretold: Cost, parents_own: Iterable[float]) -> Cost:
        value = foretold.value * ratio.value
        more = _DIFFERENCE * ratio.value * min((abs(foretold.value - each) for each in parents_own), default=0.0)
        return Cost(
            value=value,
            low=max(0.0, value * math.exp(-half_width) - more),
            high=value * math.exp(half_width) + more,
            origin="transferred",
        )

    mixers = {costs.of_mixer(block.mixer).value for parent, costs in own for block in parent.layers}
    ffns = {costs.of_ffn(block.ffn).value for parent, costs in own for block in parent.layers}
    return PartCosts(
        fixed=cost(sums.fixed, [costs.fixed.value for _, costs in own]),
        of_mixer=functools.cache(lambda mixer: cost(sums.of_mixer(mixer), mixers)),
        of_ffn=functools.cache(lambda ffn: cost(sums.of_ffn(ffn), ffns)),
    )


@functools.lru_cache(maxsize=64)
def _ratio(key: Same, backend: Backend, formats: tuple[str, ...], phase: ImportedPhase) -> _Ratio:
    profile = key.profile
    rows = [row for row in profile.wholes if row.backend == backend and _phase_of(row.point) == phase]
    for name in formats:
        if name not in {row.format for row in rows}:
            raise InputError(
                f"profile {profile.name}: {backend}",
                got="times of its " + phase + " in " + (", ".join(sorted({row.format for row in rows})) or "no format"),
                expected=f"some in {name}",
                remedy="Ask for a format that is there (--format), or read in a file of this one: "
                "blockwright profile import.",
            )
    anchors = [row for row in rows if row.format in formats]
    foretold = [_foretold_s(profile, row) for row in anchors]
    logs = [math.log(row.time_s / there) for row, there in zip(anchors, foretold, strict=True)]
    mean = sum(logs) / len(logs)
    apart = max(abs(each - mean) for each in logs)
    ends = [(row.time_s / max(row.low_s, _LEAST_SHARE * row.time_s), row.high_s / row.time_s) for row in anchors]
    widest = math.log(max(end for pair in ends for end in pair))
    return _Ratio(value=math.exp(mean), half_width=max(_LEAST_HALF_WIDTH, apart, widest), anchors_s=tuple(foretold))


def _foretold_s(profile: Profile, row: WholeRow) -> float:
    """The sum over operators of what a row measured."""
    model, load = model_of(profile, row), _load_of(row.point)
    return _sums(profile, row.backend, model, load, _phase_of(row.point)).of_model(model).value


def _sums(profile: Profile, backend: Backend, model: Model, load: Load, phase: ImportedPhase) -> PartCosts:
    """Sums over operators: by the device's own rows, of whatever runtime, else by ceilings and the runtime's class."""
    if profile.operators:
        measured = Source(profile=profile, backend=profile.operators[0].backend, formats=(), may_extrapolate=False)
        return operator_costs(measured, model, (prefill_points if phase == "prefill" else decode_points)(load))
    return (prefill_phase if phase == "prefill" else decode_phase)(profile, backend, model, load).times


def _phase_of(point: Point) -> ImportedPhase:
    return "decode" if point.new_tokens == 1 else "prefill"


def _load_of(point: Point) -> Load:
    """The load at which a phase is what was measured at a point."""
    tokens = point.slots if _phase_of(point) == "decode" else point.new_tokens
    return Load(batch=point.batch, prompt_tokens=tokens, new_tokens=1)
