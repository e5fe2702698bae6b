"""What a model will cost on a device, from the device's profile. Loads neither torch nor a runtime.

Time. At one point (batch, new tokens, slots) a model takes

    time = intercept + scale · Σ time(part)        over the mixers and ffns of its layers

where the times of parts are measured as slopes, and intercept and scale are fitted on the anchors: whole models
measured at that point, the parent among them. Parts do not quite add up in a whole model, mostly for their weights
share caches; the scale carries that. The interval is the largest error on the held-out whole models of that point, and
no less than 2 %: of three of them, so a fourth lies outside of it once in four times.

A load becomes points: its prompt is read in chunks, then tokens are written one at a time over caches of a fixed
number of slots. Between two measured points that differ in slots only, or in new tokens only, time is linear.

Memory is counted, weights as stored and caches, and what the runtime takes beyond that comes from a line through
measured whole models: something in any case, and a share of the counted bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from blockwright.compile.slots import chunks_of, slots_for
from blockwright.cost import Cost, Load, Origin, Quantity, exact, total
from blockwright.count import (
    ffn_matrices,
    ffn_vectors,
    ffn_weight_bytes,
    kv_bytes_per_slot,
    matrix_bytes,
    mixer_matrices,
    mixer_vectors,
    mixer_weight_bytes,
)
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, MemoryRow, Point, Profile, TimeRow, WholeRow
from blockwright.spec import FFN, Mixer, Model, NoOp, variant_name

_MIN_RELATIVE_ERROR = 0.02
"""Less is not claimed, however well the few held-out models were met: medians of the same model repeat within 2 % on a
calm 2-core Zen 3."""

_QUANTITIES: dict[Backend, tuple[Quantity, ...]] = {
    "onnxruntime": ("time_per_token", "time_to_first_token", "memory", "parameters"),
    "torch": ("time_per_token", "time_to_first_token", "parameters"),
}

PartKey = tuple[str, str]
"""(``mixer`` or ``ffn``, `variant_name`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTable:
    """Times at one point: the intercept, each part's share already scaled, and the relative error of a sum."""

    intercept_s: float
    parts_s: dict[PartKey, float]
    relative_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCosts:
    """What a model costs at a load: a fixed part and one cost per mixer and ffn, for one quantity."""

    fixed: Cost
    of_mixer: Callable[[Mixer], Cost]
    of_ffn: Callable[[FFN], Cost]

    def of_model(self, model: Model) -> Cost:
        """The cost of a whole model."""
        parts = [cost for b in model.layers for cost in (self.of_mixer(b.mixer), self.of_ffn(b.ffn))]
        return total([self.fixed, *parts])


def predict(profile: Profile, model: Model, load: Load, backend: Backend = "onnxruntime") -> dict[Quantity, Cost]:
    """All costs of a model at a load on the profile's device: times, parameters, and memory in ONNX Runtime only.

    Raises:
        InputError: the profile has no measurements for these blocks, this format or this load.
    """
    return {name: costs.of_model(model) for name, costs in all_part_costs(profile, model, load, backend).items()}


def all_part_costs(
    profile: Profile, model: Model, load: Load, backend: Backend = "onnxruntime"
) -> dict[Quantity, PartCosts]:
    """`part_costs` of every quantity that a runtime is measured for."""
    return {quantity: part_costs(profile, model, load, quantity, backend) for quantity in _QUANTITIES[backend]}


def part_costs(
    profile: Profile, model: Model, load: Load, quantity: Quantity, backend: Backend = "onnxruntime"
) -> PartCosts:
    """The costs of a model's fixed part and of any mixer and ffn in it.

    Args:
        profile: the device.
        model: gives the shared dimensions and, by its embedding's and layers' formats, the format to look up.
        load: the workload.
        quantity: what to count.
        backend: the runtime.

    Raises:
        InputError: the profile has no measurements for this model's shape, this format or this load.
    """
    if quantity == "parameters":
        return _parameter_costs(model)
    _check_shape(profile, model)
    if quantity == "memory":
        return _memory_costs(profile, model, load, backend)
    points = decode_points(load) if quantity == "time_per_token" else prefill_points(load)
    return _time_costs([table_at(profile, backend, format_of(model), point) for point in points])


def decode_points(load: Load) -> list[Point]:
    """Where writing one token of a load takes place."""
    return [Point(batch=load.batch, new_tokens=1, slots=slots_for(load.total_tokens))]


def prefill_points(load: Load) -> list[Point]:
    """Where reading the prompt of a load takes place, a point per chunk."""
    slots = slots_for(load.total_tokens)
    return [Point(batch=load.batch, new_tokens=chunk, slots=slots) for chunk in chunks_of(load.prompt_tokens)]


def format_of(model: Model) -> str:
    """The format that a model's layers are stored in; a model of nothing but no-ops has its embedding's.

    Raises:
        InputError: layers differ in format.
    """
    parts = (part for block in model.layers for part in (block.mixer, block.ffn))
    formats = {str(part.weights) for part in parts if not isinstance(part, NoOp)} or {str(model.embedding_weights)}
    if len(formats) > 1:
        raise InputError(
            "weight formats",
            got=", ".join(sorted(formats)),
            expected="one format for all layers",
            remedy="Choose one format.",
        )
    return formats.pop()


def table_at(profile: Profile, backend: Backend, weights_format: str, point: Point) -> PointTable:
    """The times at a point, measured or between two measured ones.

    Raises:
        InputError: the point is outside what was measured.
    """
    measured = sorted(
        {row.point for row in profile.times if (row.backend, row.format) == (backend, weights_format)},
        key=lambda p: (p.batch, p.new_tokens, p.slots),
    )
    if point in measured:
        return _fit(profile, backend, weights_format, point)
    for axis in ("slots", "new_tokens"):
        fellows = [p for p in measured if _without(p, axis) == _without(point, axis)]
        for below, above in pairwise(sorted(fellows, key=lambda p: getattr(p, axis))):
            if getattr(below, axis) < getattr(point, axis) < getattr(above, axis):
                span = getattr(above, axis) - getattr(below, axis)
                share = (getattr(point, axis) - getattr(below, axis)) / span
                tables = [_fit(profile, backend, weights_format, p) for p in (below, above)]
                return _between(tables[0], tables[1], share)
    raise InputError(
        f"profile {profile.name}: load",
        got=f"batch {point.batch}, {point.new_tokens} new tokens, {point.slots} slots, {weights_format} on {backend}",
        expected="a point between measured ones: " + "; ".join(_describe(p) for p in measured)
        if measured
        else f"measurements of {weights_format} on {backend}, and there are none",
        remedy="Profile again with this load and format: blockwright profile --load … --format …",
    )


def _fit(profile: Profile, backend: Backend, weights_format: str, point: Point) -> PointTable:
    """Intercept and scale by least squares of relative errors on the anchors of a point."""
    key = (backend, weights_format, point)
    rows: list[TimeRow] = [row for row in profile.times if (row.backend, row.format, row.point) == key]
    parts = {(row.part, row.variant): row.time_s for row in rows}
    wholes = [row for row in profile.wholes if (row.backend, row.format, row.point) == key]
    anchors = [row for row in wholes if row.is_anchor]
    if not anchors:
        raise InputError(
            f"profile {profile.name}: wholes",
            got=f"no anchor of {weights_format} on {backend} at {_describe(point)}",
            expected="whole models measured at every point where parts were",
            remedy="Profile again: the file is incomplete.",
        )
    sums = np.array([_sum_of_parts(parts, row) for row in anchors])
    times = np.array([row.time_s for row in anchors])
    columns = np.stack([np.ones_like(sums), sums], axis=1) / times[:, None]
    intercept, scale = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)[0]
    errors = [
        abs(row.time_s / (intercept + scale * _sum_of_parts(parts, row)) - 1) for row in wholes if not row.is_anchor
    ]
    return PointTable(
        intercept_s=float(intercept),
        parts_s={part: float(scale * time_s) for part, time_s in parts.items()},
        relative_error=max([_MIN_RELATIVE_ERROR, *errors]),
    )


def _sum_of_parts(parts: dict[PartKey, float], row: WholeRow) -> float:
    names = (key for mixer, ffn in row.layers for key in (("mixer", mixer), ("ffn", ffn)))
    return sum(parts[key] for key in names if key[1] != "none")


def _between(below: PointTable, above: PointTable, share: float) -> PointTable:
    def blend(first: float, second: float) -> float:
        return (1 - share) * first + share * second

    return PointTable(
        intercept_s=blend(below.intercept_s, above.intercept_s),
        parts_s={
            key: blend(time_s, above.parts_s[key]) for key, time_s in below.parts_s.items() if key in above.parts_s
        },
        relative_error=max(below.relative_error, above.relative_error),
    )


def _time_costs(tables: list[PointTable]) -> PartCosts:
    error = max(table.relative_error for table in tables)

    def cost(value: float) -> Cost:
        return Cost(value=value, low=value - error * abs(value), high=value + error * abs(value), origin="modelled")

    def lookup(part: str, variant: Mixer | FFN) -> Cost:
        if isinstance(variant, NoOp):
            return exact(0.0)
        key = (part, variant_name(variant))
        if any(key not in table.parts_s for table in tables):
            raise InputError(
                "profile",
                got=f"no time of {key[1]} as {part}",
                expected="a time for every candidate",
                remedy="Profile again with this space: blockwright profile --for PARENT.",
            )
        return cost(sum(table.parts_s[key] for table in tables))

    return PartCosts(
        fixed=cost(sum(table.intercept_s for table in tables)),
        of_mixer=lambda mixer: lookup("mixer", mixer),
        of_ffn=lambda ffn: lookup("ffn", ffn),
    )


def _parameter_costs(model: Model) -> PartCosts:
    embeddings = model.vocab_size * model.hidden_size * (1 if model.has_tied_embeddings else 2)

    def count(matrices: list[tuple[int, int]], vectors: int) -> Cost:
        return exact(sum(inputs * outputs for inputs, outputs in matrices) + vectors)

    return PartCosts(
        fixed=exact(embeddings + model.hidden_size),
        of_mixer=lambda mixer: count(mixer_matrices(model, mixer), mixer_vectors(model, mixer)),
        of_ffn=lambda ffn: count(ffn_matrices(model, ffn), ffn_vectors(model, ffn)),
    )


def exact_memory(model: Model, load: Load) -> PartCosts:
    """Weights as stored and caches, by counting; the embedding is a table in fp32."""
    slots = slots_for(load.total_tokens) * load.batch
    embedding = 4 * model.vocab_size * model.hidden_size
    is_shared = model.has_tied_embeddings and model.embedding_weights.group_size is None
    head = 0 if is_shared else matrix_bytes(model.hidden_size, model.vocab_size, model.embedding_weights)
    return PartCosts(
        fixed=exact(embedding + head + 4 * model.hidden_size),
        of_mixer=lambda m: exact(mixer_weight_bytes(model, m) + slots * kv_bytes_per_slot(model, m)),
        of_ffn=lambda f: exact(ffn_weight_bytes(model, f)),
    )


def _memory_costs(profile: Profile, model: Model, load: Load, backend: Backend) -> PartCosts:
    wanted = (backend, format_of(model), load.batch, load.prompt_tokens, load.new_tokens)
    rows = [r for r in profile.memory if (r.backend, r.format, r.batch, r.prompt_tokens, r.new_tokens) == wanted]
    if not rows:
        raise InputError(
            f"profile {profile.name}: memory",
            got=f"no measurement of {wanted[1]} on {backend} at {load}",
            expected="one at this load",
            remedy="Profile again with this load and format: blockwright profile --load … --format …",
        )
    counted, line = exact_memory(model, load), _fit_workspace(rows)

    def with_share(cost: Cost) -> Cost:
        return exact((1 + line.share) * cost.value)

    fixed = with_share(counted.fixed).value + line.base_bytes
    return PartCosts(
        fixed=Cost(value=fixed, low=fixed - line.error_bytes, high=fixed + line.error_bytes, origin=line.origin),
        of_mixer=lambda mixer: with_share(counted.of_mixer(mixer)),
        of_ffn=lambda ffn: with_share(counted.of_ffn(ffn)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workspace:
    """What a runtime takes beyond weights and caches: something in any case, and a share of their bytes."""

    base_bytes: float
    share: float
    error_bytes: float
    origin: Origin


def _fit_workspace(rows: list[MemoryRow]) -> _Workspace:
    """A line through the measured models; its error is the largest on a model that was left out of the fit."""
    counted = np.array([row.exact_bytes for row in rows], dtype=np.float64)
    beyond = np.array([row.peak_bytes for row in rows]) - counted
    sizes = set(counted)
    if len(sizes) < 3:  # too few for a line that could be wrong
        base = float(beyond.max())
        error = max(_MIN_RELATIVE_ERROR * base, float(np.ptp(beyond)))
        return _Workspace(base_bytes=base, share=0.0, error_bytes=error, origin="transferred")
    base, share = _line(counted, beyond)
    errors: list[float] = []
    for size in sizes:
        others = counted != size
        left_out_base, left_out_share = _line(counted[others], beyond[others])
        errors += list(np.abs(left_out_base + left_out_share * size - beyond[~others]))
    return _Workspace(base_bytes=base, share=share, error_bytes=float(max(errors)), origin="interpolated")


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of least squares; a slope below zero counts as none."""
    slope = float(np.polyfit(x, y, 1)[0])
    return (float(y.mean() - slope * x.mean()), slope) if slope > 0 else (float(y.mean()), 0.0)


def _check_shape(profile: Profile, model: Model) -> None:
    for name in ("hidden_size", "num_heads", "head_dim", "vocab_size", "has_qk_norm", "has_qkv_bias"):
        if getattr(profile.model, name) != getattr(model, name):
            raise InputError(
                f"profile {profile.name}: {name}",
                got=str(getattr(profile.model, name)),
                expected=str(getattr(model, name)),
                remedy="This profile measured blocks of another shape: blockwright profile --for PARENT.",
            )


def _without(point: Point, axis: str) -> tuple[int, ...]:
    return tuple(getattr(point, name) for name in ("batch", "new_tokens", "slots") if name != axis)


def _describe(point: Point) -> str:
    return f"batch {point.batch}, {point.new_tokens} new, {point.slots} slots"
