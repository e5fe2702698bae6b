"""Measures a device for the blocks of a parent: a list of small cases, each giving rows of the profile."""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.cost import Load
from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.hw_profiles.device import RUNTIMES_OWN
from blockwright.hw_profiles.profile import Backend, MemoryRow, Point, TimeRow, WholeRow
from blockwright.profiler import onnx_blocks, torch_blocks, wholes
from blockwright.profiler.bench import Bench
from blockwright.profiler.clock import Effort, Samples, Timing, timing_of
from blockwright.profiler.cost_model import exact_memory
from blockwright.profiler.memory import peak_bytes
from blockwright.profiler.points import decode_points, prefill_points, reads_with
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FFN, FP32, Block, Format, Mixer, Model, NoOp, Part, V, stored_as, variant_name, with_format
from blockwright.units import format_bytes

Row = TimeRow | WholeRow | MemoryRow

_ANCHORS = ((1.0, 0.0), (0.5, 0.0), (0.0, 0.0), (0.0, 0.4), (0.0, 0.8))
_HELD_OUT = ((0.7, 0.0), (0.3, 0.0), (0.1, 0.0), (0.0, 0.6))
"""Whole models are random mixes: of layers' parts, such a share is the parent's own and such a share of the rest
nothing at all. Those of hardly any part tell what a model costs beyond its parts."""
_MEMORY_SHARES = ((1.0, 0.0), (0.6, 0.0), (0.3, 0.0), (0.0, 0.0), (0.0, 0.7))
"""The same for memory."""
_MOST_GRAPH_BYTES = 2**31 - 2**24
"""A protobuf message is shorter than 2 GiB; some of it is the graph itself."""
_SAMPLE_VARIANTS: dict[Backend, Callable[[Bench, Sequence[Mixer | FFN], Point], list[Samples]]] = {
    "onnxruntime": onnx_blocks.sample_variants,
    "torch": torch_blocks.sample_variants,
}
_SAMPLE_MODELS: dict[Backend, Callable[[Bench, list[Model], Point], list[Samples]]] = {
    "onnxruntime": wholes.sample_models,
    "torch": torch_blocks.sample_models,
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
    operators: str = RUNTIMES_OWN
    """Whose operators ONNX Runtime's graphs run on; see `hw_profiles.device.OPERATORS`."""

    def points(self, backend: Backend) -> list[Point]:
        """Where all loads take place, each place once."""
        reads = reads_with(self.operators, backend, self.parent)
        found = [p for load in self.loads for p in (*decode_points(load, reads), *prefill_points(load, reads))]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCase:
    """The time of one mixer or ffn at one point."""

    bench: Bench
    variant: Mixer | FFN
    point: Point

    @property
    def name(self) -> str:
        """The same in every run."""
        return (
            f"{self.bench.backend} {self.bench.weights} {self.part} {variant_name(self.variant)}, {_where(self.point)}"
        )

    def row(self, timing: Timing) -> TimeRow:
        """What a timing says."""
        return TimeRow(
            backend=self.bench.backend,
            format=str(self.bench.weights),
            part=self.part,
            variant=variant_name(self.variant),
            point=self.point,
            time_s=max(timing.calm_s, 0.0),
            low_s=max(timing.low_s, 0.0),
            high_s=max(timing.high_s, 0.0),
            num_samples=timing.num_samples,
            num_rejected=timing.num_rejected,
            origin="measured",
        )

    def sample(self) -> list[Samples]:
        """Times it here, by itself."""
        return sample_together([self])[0]

    def rows(self, timings: Sequence[Timing]) -> list[TimeRow]:
        """What the timings of `sample` say."""
        return [self.row(timing) for timing in timings]

    @property
    def part(self) -> Part:
        return "mixer" if isinstance(self.variant, Mixer) else "ffn"


@dataclass(frozen=True, slots=True, kw_only=True)
class WholesCase:
    """The times of whole models at one point: the anchors, then those held out."""

    bench: Bench
    models: tuple[Model, ...]
    point: Point

    @property
    def name(self) -> str:
        """The same in every run."""
        return f"{self.bench.backend} {self.bench.weights} whole models, {_where(self.point)}"

    def rows(self, timings: Sequence[Timing]) -> list[WholeRow]:
        """What the timings of all models say."""
        return [
            WholeRow(
                backend=self.bench.backend,
                format=str(self.bench.weights),
                layers=layer_names(model),
                is_anchor=index < len(_ANCHORS),
                point=self.point,
                time_s=timing.calm_s,
                low_s=timing.low_s,
                high_s=timing.high_s,
                num_samples=timing.num_samples,
                num_rejected=timing.num_rejected,
                origin="measured",
            )
            for index, (model, timing) in enumerate(zip(self.models, timings, strict=True))
        ]

    def sample(self) -> list[Samples]:
        """Times them here."""
        return _SAMPLE_MODELS[self.bench.backend](self.bench, list(self.models), self.point)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCase:
    """The memory of whole models at a load."""

    bench: Bench
    models: tuple[Model, ...]
    load: Load

    @property
    def name(self) -> str:
        """The same in every run."""
        load = self.load
        where = f"batch {load.batch}, {load.prompt_tokens}+{load.new_tokens}"
        return f"{self.bench.backend} {self.bench.weights} memory, {where}"

    def row(self, model: Model, peak: int) -> MemoryRow:
        """What a peak says."""
        return MemoryRow(
            backend=self.bench.backend,
            format=str(self.bench.weights),
            batch=self.load.batch,
            prompt_tokens=self.load.prompt_tokens,
            new_tokens=self.load.new_tokens,
            peak_bytes=peak,
            exact_bytes=int(exact_memory(model, self.load).of_model(model).value),
            origin="measured",
        )

    def measure(self) -> list[MemoryRow]:
        """Takes them here."""
        return [self.row(model, self._peak(model)) for model in self.models]

    def _peak(self, model: Model) -> int:
        order = EngineOrder(
            model=model,
            weights_format=self.bench.weights,
            num_positions=self.load.total_tokens,
            session=self.bench.session,
            built_from="random weights",
            flavour=self.bench.flavour,
        )
        with tempfile.TemporaryDirectory() as folder:
            write_engine(order, random_weights(model), Path(folder))
            return peak_bytes(Path(folder), self.load)


TimedCase = PartCase | WholesCase
Case = TimedCase | MemoryCase


def sample_together(parts: Sequence[PartCase]) -> list[list[Samples]]:
    """Times parts of one bench and point in turn, so that each is met in all that befalls the machine meanwhile."""
    first = parts[0]
    variants = [case.variant for case in parts]
    return [[each] for each in _SAMPLE_VARIANTS[first.bench.backend](first.bench, variants, first.point)]


def measure(case: Case) -> Sequence[Row]:
    """Measures a case here, once."""
    if isinstance(case, MemoryCase):
        return case.measure()
    return case.rows([timing_of([samples]) for samples in case.sample()])


def cases(request: Request) -> Iterator[Case]:
    """Everything to measure, in order.

    Raises:
        InputError: the parent is too large to be measured as one graph.
    """
    _check_fits(request.parent)
    for backend in request.backends:
        for weights in request.formats if backend == "onnxruntime" else (FP32,):
            bench = Bench(
                backend=backend,
                weights=weights,
                model=with_format(request.parent, weights),
                session=request.session,
                effort=request.effort,
            )
            for point in request.points(backend):
                for variant in (*request.mixers, *request.ffns):
                    if not isinstance(variant, NoOp):
                        yield PartCase(bench=bench, variant=stored_as(variant, weights), point=point)
                yield WholesCase(bench=bench, models=_mixes(request, weights, (*_ANCHORS, *_HELD_OUT)), point=point)
            if backend == "onnxruntime":
                for load in request.loads:
                    yield MemoryCase(bench=bench, models=_mixes(request, weights, _MEMORY_SHARES), load=load)


def _check_fits(parent: Model) -> None:
    size = 4 * parameters(parent)
    if size >= _MOST_GRAPH_BYTES:
        raise InputError(
            "parent",
            got=f"{format_bytes(size)} of weights in fp32",
            expected=f"less than {format_bytes(_MOST_GRAPH_BYTES)}: this version measures one graph",
            remedy="Take a smaller parent.",
        )


def _mixes(request: Request, weights: Format, shares: Sequence[tuple[float, float]]) -> tuple[Model, ...]:
    return tuple(
        with_format(mix(request.parent, request.mixers, request.ffns, own, seed, none), weights)
        for seed, (own, none) in enumerate(shares)
    )


def _where(point: Point) -> str:
    return f"batch {point.batch}, {point.new_tokens} new, {point.slots} slots"


def mix(
    parent: Model, mixers: Sequence[Mixer], ffns: Sequence[FFN], own_share: float, seed: int, none_share: float = 0.0
) -> Model:
    """A random child.

    Each mixer and ffn is the parent's own with a chance of `own_share`, else nothing with one of `none_share` where
    nothing is a candidate, else any candidate.
    """
    generator = random.Random(seed)

    def pick(own: V, candidates: Sequence[V]) -> V:
        if generator.random() < own_share:
            return own
        nothing = [each for each in candidates if isinstance(each, NoOp)]
        if none_share and nothing and generator.random() < none_share:
            return nothing[0]
        return generator.choice(candidates)

    layers = tuple(Block(mixer=pick(b.mixer, mixers), ffn=pick(b.ffn, ffns)) for b in parent.layers)
    return replace(parent, layers=layers)


def layer_names(model: Model) -> tuple[tuple[str, str], ...]:
    """The names of each layer's mixer and ffn."""
    return tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in model.layers)
