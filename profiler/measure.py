"""Measures a device for the blocks of a parent: a list of small steps, each giving rows of the profile."""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.cost import Load
from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, MemoryRow, Point, TimeRow, WholeRow
from blockwright.profiler import onnx_blocks, torch_blocks
from blockwright.profiler.bench import Bench
from blockwright.profiler.clock import Effort, Timing
from blockwright.profiler.cost_model import decode_points, exact_memory, prefill_points
from blockwright.profiler.memory import peak_bytes
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FFN, FP32, Block, Format, Mixer, Model, NoOp, V, stored_as, variant_name, with_format
from blockwright.units import format_bytes

Row = TimeRow | WholeRow | MemoryRow

_ANCHOR_SHARES = (1.0, 0.5, 0.0)
_HELD_OUT_SHARES = (0.7, 0.3, 0.1)
"""Whole models are random mixes in which a layer's part is the parent's own with this chance."""
_MEMORY_SHARES = (1.0, 0.6, 0.3, 0.0)
"""The same for memory."""
_MOST_GRAPH_BYTES = 2**31 - 2**24
"""A protobuf message is shorter than 2 GiB; some of it is the graph itself."""
_TIME_VARIANT: dict[Backend, Callable[[Bench, Mixer | FFN, Point], Timing]] = {
    "onnxruntime": onnx_blocks.time_variant,
    "torch": torch_blocks.time_variant,
}
_TIME_MODELS: dict[Backend, Callable[[Bench, list[Model], Point], list[Timing]]] = {
    "onnxruntime": onnx_blocks.time_models,
    "torch": torch_blocks.time_models,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to measure."""

    parent: Model
    mixers: tuple[Mixer, ...]
    ffns: tuple[FFN, ...]
    formats: tuple[Format, ...]
    loads: tuple[Load, ...]
    session: SessionSettings
    effort: Effort
    backends: tuple[Backend, ...] = ("onnxruntime",)
    """What to measure times in; torch runs fp32 only, whatever the formats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to measure, with a name that is the same in every run."""

    name: str
    measure: Callable[[], list[Row]]


def steps(request: Request) -> Iterator[Step]:
    """Everything to measure, in order.

    Raises:
        InputError: the parent is too large to be measured as one graph.
    """
    _check_fits(request.parent)
    points = {p: None for load in request.loads for p in (*decode_points(load), *prefill_points(load))}
    for backend in request.backends:
        for weights in request.formats if backend == "onnxruntime" else (FP32,):
            bench = Bench(
                backend=backend,
                weights=weights,
                model=with_format(request.parent, weights),
                session=request.session,
                effort=request.effort,
            )
            for point in points:
                for variant in (*request.mixers, *request.ffns):
                    if not isinstance(variant, NoOp):
                        yield _variant_step(bench, stored_as(variant, weights), point)
                yield _wholes_step(bench, request, point)
            if backend == "onnxruntime":
                for load in request.loads:
                    yield _memory_step(bench, request, load)


def _check_fits(parent: Model) -> None:
    size = 4 * parameters(parent)
    if size >= _MOST_GRAPH_BYTES:
        raise InputError(
            "parent",
            got=f"{format_bytes(size)} of weights in fp32",
            expected=f"less than {format_bytes(_MOST_GRAPH_BYTES)}: this version measures one graph",
            remedy="Take a smaller parent.",
        )


def _variant_step(bench: Bench, variant: Mixer | FFN, point: Point) -> Step:
    part = "mixer" if isinstance(variant, Mixer) else "ffn"

    def measure() -> list[Row]:
        timing = _TIME_VARIANT[bench.backend](bench, variant, point)
        return [
            TimeRow(
                backend=bench.backend,
                format=str(bench.weights),
                part=part,
                variant=variant_name(variant),
                point=point,
                time_s=max(timing.median_s, 0.0),
                low_s=max(timing.low_s, 0.0),
                high_s=max(timing.high_s, 0.0),
                num_samples=timing.num_samples,
                num_rejected=timing.num_rejected,
                origin="measured",
            )
        ]

    name = f"{bench.backend} {bench.weights} {part} {variant_name(variant)}, {_where(point)}"
    return Step(name=name, measure=measure)


def _wholes_step(bench: Bench, request: Request, point: Point) -> Step:
    shares = [*_ANCHOR_SHARES, *_HELD_OUT_SHARES]
    models = [
        with_format(mix(request.parent, request.mixers, request.ffns, share, seed), bench.weights)
        for seed, share in enumerate(shares)
    ]

    def measure() -> list[Row]:
        timings = _TIME_MODELS[bench.backend](bench, models, point)
        return [
            WholeRow(
                backend=bench.backend,
                format=str(bench.weights),
                layers=layer_names(model),
                is_anchor=index < len(_ANCHOR_SHARES),
                point=point,
                time_s=timing.median_s,
                low_s=timing.low_s,
                high_s=timing.high_s,
                num_samples=timing.num_samples,
                num_rejected=timing.num_rejected,
                origin="measured",
            )
            for index, (model, timing) in enumerate(zip(models, timings, strict=True))
        ]

    return Step(name=f"{bench.backend} {bench.weights} whole models, {_where(point)}", measure=measure)


def _memory_step(bench: Bench, request: Request, load: Load) -> Step:
    models = [
        with_format(mix(request.parent, request.mixers, request.ffns, share, seed), bench.weights)
        for seed, share in enumerate(_MEMORY_SHARES)
    ]
    return Step(
        name=f"{bench.backend} {bench.weights} memory, batch {load.batch}, {load.prompt_tokens}+{load.new_tokens}",
        measure=lambda: [_memory_row(bench, model, load) for model in models],
    )


def _memory_row(bench: Bench, model: Model, load: Load) -> MemoryRow:
    order = EngineOrder(
        model=model,
        weights_format=bench.weights,
        num_positions=load.total_tokens,
        session=bench.session,
        built_from="random weights",
    )
    with tempfile.TemporaryDirectory() as folder:
        write_engine(order, random_weights(model), Path(folder))
        peak = peak_bytes(Path(folder), load)
    return MemoryRow(
        backend=bench.backend,
        format=str(bench.weights),
        batch=load.batch,
        prompt_tokens=load.prompt_tokens,
        new_tokens=load.new_tokens,
        peak_bytes=peak,
        exact_bytes=int(exact_memory(model, load).of_model(model).value),
        origin="measured",
    )


def _where(point: Point) -> str:
    return f"batch {point.batch}, {point.new_tokens} new, {point.slots} slots"


def mix(parent: Model, mixers: Sequence[Mixer], ffns: Sequence[FFN], own_share: float, seed: int) -> Model:
    """A random child: each mixer and ffn is the parent's own with a chance of `own_share`, else any candidate."""
    generator = random.Random(seed)

    def pick(own: V, candidates: Sequence[V]) -> V:
        return own if generator.random() < own_share else generator.choice(candidates)

    layers = tuple(Block(mixer=pick(b.mixer, mixers), ffn=pick(b.ffn, ffns)) for b in parent.layers)
    return replace(parent, layers=layers)


def layer_names(model: Model) -> tuple[tuple[str, str], ...]:
    """The names of each layer's mixer and ffn."""
    return tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in model.layers)
