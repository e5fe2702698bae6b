"""How much of a GPU is measured for a parent: which operators, variants and whole children, and how long each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from blockwright.compile.slots import PREFILL_CHUNK, chunks_of, slots_for
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.gpu_bench import Bench, measure_part, measure_whole
from blockwright.profiler.gpu_blocks import measure_memory
from blockwright.profiler.gpu_ceilings import TINY, CeilingSizes
from blockwright.profiler.gpu_clock import GpuClock, GpuEffort
from blockwright.profiler.gpu_operators import grid, measure_operator, name_of
from blockwright.profiler.gpu_sitting import Step
from blockwright.profiler.measure import mix
from blockwright.spec import (
    FFN,
    Attention,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    variant_name,
)

_ANCHOR_SHARES = (1.0, 0.5, 0.0)
"""Whole models are random mixes in which a layer's part is the parent's own with this chance."""
_INTERVAL_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""The largest error of nine held-out models is exceeded by a tenth one in one case of ten."""
_MEMORY_SHARES = (1.0, 0.6, 0.3, 0.0)
_VALIDATION_SEED, _VALIDATION_SHARE = 1000, 0.4
_BESIDE_OPERATOR_S, _BESIDE_POINT_S, _BUILD_S = 0.2, 0.3, 0.5
"""Capturing, asking the driver, and making weights: guesses, to be replaced by what a GPU takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    effort: GpuEffort
    operator_effort: GpuEffort
    sizes: CeilingSizes
    reference_side: int
    load: Load
    num_variants: int
    num_validated: int
    is_quick: bool


FULL = Plan(
    effort=GpuEffort(),
    operator_effort=GpuEffort(limit_s=0.25),
    sizes=CeilingSizes(),
    reference_side=4096,
    load=Load(batch=8, prompt_tokens=512, new_tokens=512),
    num_variants=60,
    num_validated=24,
    is_quick=False,
)
QUICK = replace(
    FULL,
    effort=GpuEffort(min_samples=3, limit_s=0.005, warm_up_s=0.0, warm_up_calls=1),
    operator_effort=GpuEffort(min_samples=3, limit_s=0.005, warm_up_s=0.0, warm_up_calls=1),
    sizes=TINY,
    reference_side=64,
    load=Load(batch=1, prompt_tokens=16, new_tokens=16),
    num_variants=6,
    is_quick=True,
)


def at_load(plan: Plan, load: Load) -> Plan:
    """The same plan at another load.

    Raises:
        InputError: its prompt is read in several chunks, of which only one would be measured.
    """
    if len(chunks_of(load.prompt_tokens)) != 1:
        raise InputError(
            "--load",
            got=f"a prompt of {load.prompt_tokens} tokens",
            expected=f"one that is read at once: up to {PREFILL_CHUNK} tokens",
            remedy="Measure at a shorter prompt.",
        )
    return replace(plan, load=load)


def profile_steps(benches: Sequence[Bench], plan: Plan) -> list[Step]:
    """The cases of a profile: operators, parts, whole models, memory; mixed, so that drift meets all alike.

    Operators are torch's, and so are the cases of memory: TensorRT's whole models are weighed while they are timed.
    """
    steps = [step for bench in benches for step in _steps_of(bench, plan)]
    random.Random(0).shuffle(steps)
    return steps


def validation(benches: Sequence[Bench], plan: Plan) -> tuple[list[Model], list[Step]]:
    """Random whole children that the profile does not know, and the cases that time them."""
    shares = [_VALIDATION_SHARE] * plan.num_validated
    found = [(bench, model) for bench in benches for model in _mixes(bench, plan, shares, _VALIDATION_SEED)]
    return [model for _, model in found], [
        _whole_step(bench, f"validation {index}", model, plan.load, is_anchor=False)
        for index, (bench, model) in enumerate(found)
    ]


def _steps_of(bench: Bench, plan: Plan) -> list[Step]:
    points, is_torch = points_of(plan.load), bench.runtime.backend == "torch"
    mixers, ffns = variants(bench.parent, plan.num_variants, bench.runtime.weights)
    short = GpuClock(bench.device, plan.operator_effort, bench.clock.reference_hz)
    steps = [
        Step(name=name_of(each), measure=lambda o=each: [measure_operator(o, short, bench.device)], is_operator=True)
        for each in grid(plan.is_quick)
        if is_torch
    ]
    for variant in (*mixers, *ffns):
        if not isinstance(variant, NoOp):
            name = f"{'mixer' if isinstance(variant, Mixer) else 'ffn'} {variant_name(variant)}"
            steps.append(Step(name=_of(bench, name), measure=lambda v=variant: measure_part(bench, v, points)))
    shares = (*_ANCHOR_SHARES, *_INTERVAL_SHARES)
    steps += [
        _whole_step(bench, f"whole model {index}", model, plan.load, is_anchor=index < len(_ANCHOR_SHARES))
        for index, model in enumerate(_mixes(bench, plan, shares, 0))
    ]
    steps += [
        Step(name=f"memory {index}", measure=lambda m=model: measure_memory(bench, m, plan.load))
        for index, model in enumerate(_mixes(bench, plan, _MEMORY_SHARES, 0))
        if is_torch
    ]
    return steps


def variants(parent: Model, number: int, weights: Format) -> tuple[list[Mixer], list[FFN]]:
    """About so many: all KV heads up to the parent's, one matrix, nothing, and widths from a tenth to the whole.

    Args:
        parent: in the format.
        number: of mixers and ffns together.
        weights: the format, whose groups divide all widths but the parent's own.
    """
    own = next(b.mixer for b in parent.layers if isinstance(b.mixer, Attention))
    width = max(b.ffn.width for b in parent.layers if isinstance(b.ffn, GatedFFN))
    heads = [n for n in range(own.num_kv_heads, 0, -1) if own.num_kv_heads % n == 0]
    mixers: list[Mixer] = [replace(own, num_kv_heads=n) for n in heads]
    mixers += [LinearMixer(weights=weights), NoOp()]
    num_widths = max(2, number - len(mixers))  # nothing is not measured, but one matrix is
    tile = max(64 if width >= 64 * num_widths else 1, weights.group_size or 1)
    shares = [0.1 + 0.9 * index / (num_widths - 1) for index in range(num_widths)]
    widths = dict.fromkeys(max(tile, round(share * width / tile) * tile) for share in shares[:-1])
    ffns: list[FFN] = [GatedFFN(width=each, weights=weights) for each in dict.fromkeys([*widths, width])]
    return mixers, [*ffns, LinearFFN(weights=weights), NoOp()]


def estimate_s(plan: Plan, steps: Sequence[Step]) -> float:
    """At most how long some cases take, by counting warm-ups and limits: it is no measurement of any GPU.

    Of building plans, which takes TensorRT longer than all else, nothing is known.
    """
    num_operators = sum(step.is_operator for step in steps)
    per_operator = plan.operator_effort.warm_up_s + plan.operator_effort.limit_s + _BESIDE_OPERATOR_S
    per_point = plan.effort.warm_up_s + plan.effort.limit_s + _BESIDE_POINT_S
    return num_operators * per_operator + (len(steps) - num_operators) * (2 * per_point + _BUILD_S)


def points_of(load: Load) -> list[Point]:
    """Where a token of a load is written, and where its prompt is read, which is one chunk."""
    slots = slots_for(load.total_tokens)
    return [Point(batch=load.batch, new_tokens=tokens, slots=slots) for tokens in (1, load.prompt_tokens)]


def _whole_step(bench: Bench, name: str, model: Model, load: Load, *, is_anchor: bool) -> Step:
    return Step(name=_of(bench, name), measure=lambda: measure_whole(bench, model, points_of(load), is_anchor, load))


def _of(bench: Bench, name: str) -> str:
    """A case's name; torch's have nothing before them."""
    return name if bench.runtime.backend == "torch" else f"{bench.runtime.backend} {bench.runtime.weights} {name}"


def _mixes(bench: Bench, plan: Plan, shares: Sequence[float], seed: int) -> list[Model]:
    mixers, ffns = variants(bench.parent, plan.num_variants, bench.runtime.weights)
    return [mix(bench.parent, mixers, ffns, share, seed + index) for index, share in enumerate(shares)]
