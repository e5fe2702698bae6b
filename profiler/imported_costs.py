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

A runtime takes other kernels for other shapes, whatever the sums say of their time, so the half-width also grows with
the logarithms of batch and tokens between a load and its nearest anchor (`_PER_LOG`). Further than `_COVERED` times
beyond all anchors a load is refused, or where that is allowed the interval goes on widening.
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
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.profiler.served_costs import decode_phase, prefill_phase
from blockwright.spec import Model, parse_format, with_format

_DIFFERENCE = 0.35
"""Of a difference that nobody measured: what nine of ten devices and models stayed within of a datasheet's prediction
with a compiled runtime (`serving_runtimes.COMPILED`)."""

_LEAST_HALF_WIDTH = 0.02
"""As in `time_model`: medians of the same model repeat within 2 %."""

_LEAST_SHARE = 0.01
"""Of a time that its interval is taken to reach down to: a logarithm has no nothing."""

_PER_LOG = 0.12
"""Half-width per unit of the logarithm. At 64 times the batch that is 0.5, two errors of `_DIFFERENCE` in squares, for
there one load's ratio says nothing of the other's. A judgement, fitted to no measurements."""

_COVERED = 4.0
"""Times below the least, or above the most, of batch and tokens that were read in."""

_SOURCES: dict[Backend, str] = {"llama.cpp": "llama-bench", "vllm": "vllm", "tensorrt": "trtexec"}
"""Whose files `profile import` reads of a runtime, as it names them."""

ImportedPhase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ratio:
    """Measured over foretold, of the anchors of a phase."""

    value: float
    half_width: float
    """Of its logarithm."""
    anchors_s: tuple[float, ...]
    """What was foretold of them."""
    points: tuple[Point, ...]
    """Where they were measured."""


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
            remedy=_how_to_get(backend),
        )
    return {_phase_of(row.point) for row in rows}


def _how_to_get(backend: Backend) -> str:
    command = f"blockwright profile import {_SOURCES[backend]} RESULTS --for PARENT --into PROFILE"
    if backend != "tensorrt":
        return f"Read them in: {command}."
    measure = "blockwright profile --device cuda --backend tensorrt --for PARENT"
    return f"Measure them, on the GPU itself: {measure}. Or read them in: {command}."


def imported_times(source: Source, model: Model, load: Load, phase: ImportedPhase) -> PartCosts:
    """The time of a model's fixed part and of any mixer and ffn, in one phase of a load.

    Raises:
        InputError: no times were read in of this phase in one of the formats, or none near this load where that is
            asked for, or the sum cannot be told.
    """
    _check_covered(source, load, phase)
    return _times(Same(source.profile), source.backend, source.formats, model, load, phase)


def imported_ratio(source: Source, load: Load, phase: ImportedPhase) -> float:
    """What the anchors took over what is foretold of them.

    Raises:
        InputError: there are none of this phase in one of the formats, or none near this load where that is asked for.
    """
    _check_covered(source, load, phase)
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
    distance = min(1 - min(each, there_s) / max(each, there_s) for each in ratio.anchors_s)
    here = _place(_point_of(load, phase))
    away = min(math.dist(here, _place(point)) for point in ratio.points)
    half_width = ratio.half_width + _DIFFERENCE * distance + _PER_LOG * away

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
    if not rows:
        raise InputError(
            f"profile {profile.name}: {backend}",
            got=f"times in no format of its {phase}",
            expected="some: of a request, reading the prompt and writing tokens are both needed",
            remedy=f"Read in the times of a {phase} too, into this profile: blockwright profile import.",
        )
    for name in formats:
        if name not in {row.format for row in rows}:
            raise InputError(
                f"profile {profile.name}: {backend}",
                got="times of its " + phase + " in " + ", ".join(sorted({row.format for row in rows})),
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
    return _Ratio(
        value=math.exp(mean),
        half_width=max(_LEAST_HALF_WIDTH, apart, widest),
        anchors_s=tuple(foretold),
        points=tuple(row.point for row in anchors),
    )


def _check_covered(source: Source, load: Load, phase: ImportedPhase) -> None:
    """Refuses a load far beyond all anchors of a phase, where it may not be gone beyond."""
    points = _ratio(Same(source.profile), source.backend, source.formats, phase).points
    point, beyond = _point_of(load, phase), math.log(_COVERED) + 1e-9
    for place, known in zip(_place(point), zip(*map(_place, points), strict=True), strict=True):
        if not source.may_extrapolate and not min(known) - beyond <= place <= max(known) + beyond:
            raise InputError(
                f"profile {source.profile.name}: load",
                got=f"{phase} at {_words(point)}, {', '.join(source.formats)} on {source.backend}",
                expected=f"at most {_COVERED:.0f} times beyond what was read in: "
                + "; ".join(_words(each) for each in dict.fromkeys(points)),
                remedy="Read in a benchmark nearer to it (blockwright profile import), or go beyond, at a wider "
                "interval, with --extrapolate.",
            )


def _place(point: Point) -> tuple[float, float]:
    """Logarithms of the batch, and of the tokens that are read at once, or in the caches where one is written."""
    tokens = point.slots if _phase_of(point) == "decode" else point.new_tokens
    return math.log(point.batch), math.log(tokens)


def _words(point: Point) -> str:
    if _phase_of(point) == "decode":
        return f"batch {point.batch} over {point.slots} tokens"
    return f"batch {point.batch}, prompts of {point.new_tokens}"


def _point_of(load: Load, phase: ImportedPhase) -> Point:
    """Where a phase of a load takes place, its answer half written."""
    if phase == "decode":
        return Point(batch=load.batch, new_tokens=1, slots=load.prompt_tokens + load.new_tokens // 2)
    return Point(batch=load.batch, new_tokens=load.prompt_tokens, slots=load.prompt_tokens)


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
