"""What a model will cost on a device, from the device's profile. Loads neither torch nor a runtime.

A load becomes points: its prompt is read in chunks, then tokens are written one at a time over caches of a fixed
number of slots. How long that takes, and how much memory, hangs on what the profile knows (`known`). The rest follows:

    request latency = time to first token + (new tokens − 1) · time per token        of one batch
    throughput      = batch · new tokens / request latency
    energy          = power · request latency / batch                                per sequence

All but the throughput are sums over a model's parts, which is what the search needs; a bound on the throughput is one
on the request latency (`latency_of_throughput`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from blockwright.cost import MEASURED_QUANTITIES, UNIT_OF, Cost, Load, Quantity, exact
from blockwright.count import ffn_matrices, ffn_vectors, mixer_matrices, mixer_vectors
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, Profile, is_imported
from blockwright.profiler.counted import counting_of
from blockwright.profiler.counted import exact_memory as exact_memory
from blockwright.profiler.counted import reaches_of as reaches_of
from blockwright.profiler.imported_costs import imported_phases
from blockwright.profiler.known import Known, costs_from, what_is_known
from blockwright.profiler.parts import PartCosts, Source
from blockwright.profiler.parts import Reaches as Reaches
from blockwright.profiler.points import decode_points as decode_points
from blockwright.profiler.points import prefill_points as prefill_points
from blockwright.spec import Format, Model, NoOp, parse_format


def predict(
    profile: Profile,
    model: Model,
    load: Load,
    backend: Backend = "onnxruntime",
    *,
    formats: Sequence[Format] = (),
    may_extrapolate: bool = False,
) -> dict[Quantity, Cost]:
    """All costs of a model at a load on the profile's device: those of `known_quantities`.

    The throughput is left out where the latency's interval reaches down to nothing, for then it has no upper end.

    Args:
        profile: the device.
        model: its layers may differ in format.
        load: the workload.
        backend: the runtime.
        formats: see `part_costs`.
        may_extrapolate: see `part_costs`.

    Raises:
        InputError: the profile has no measurements for these blocks, these formats or this load.
    """
    costs: dict[Quantity, Cost] = {}
    for quantity in known_quantities(profile, backend):
        if quantity != "throughput":
            parts = part_costs(
                profile,
                model,
                load,
                quantity,
                backend,
                formats=formats,
                may_extrapolate=may_extrapolate,
                reaches=reaches_of(block.mixer for block in model.layers),
            )
            costs[quantity] = parts.of_model(model)
        elif costs["request_latency"].low > 0:
            costs[quantity] = throughput_of(load, costs["request_latency"])
    return costs


def known_quantities(profile: Profile, backend: Backend = "onnxruntime") -> tuple[Quantity, ...]:
    """What can be told of a model: energy only where the profile knows the power, memory only where it is measured."""
    unknown = _unmeasured(profile, backend)
    if profile.ceilings.busy_w is None:
        unknown = (*unknown, "energy")
    return tuple(quantity for quantity in UNIT_OF if quantity not in unknown)


def _unmeasured(profile: Profile, backend: Backend) -> tuple[Quantity, ...]:
    """What needs a phase that was not imported; of blocks on a GPU, where a parent's were measured, maybe memory."""
    if is_imported(profile, backend):
        phases = imported_phases(profile, backend)
        if phases == {"prefill", "decode"}:
            return ()
        gone: Quantity = "time_per_token" if phases == {"prefill"} else "time_to_first_token"
        return (gone, "request_latency", "throughput", "energy")
    told = counting_of(backend).is_told
    is_measured = told == "where measured" and any(row.backend == backend for row in profile.memory)
    return () if told == "always" or is_measured or not profile.times else ("memory",)


def all_part_costs(
    profile: Profile,
    model: Model,
    load: Load,
    backend: Backend = "onnxruntime",
    *,
    formats: Sequence[Format] = (),
    may_extrapolate: bool = False,
    reaches: Reaches = None,
) -> dict[Quantity, PartCosts]:
    """`part_costs` of every quantity that a runtime is measured for: what a promise can be held against."""
    return {
        quantity: part_costs(
            profile,
            model,
            load,
            quantity,
            backend,
            formats=formats,
            may_extrapolate=may_extrapolate,
            reaches=reaches,
        )
        for quantity in MEASURED_QUANTITIES
        if quantity not in _unmeasured(profile, backend)
    }


def part_costs(
    profile: Profile,
    model: Model,
    load: Load,
    quantity: Quantity,
    backend: Backend = "onnxruntime",
    *,
    formats: Sequence[Format] = (),
    may_extrapolate: bool = False,
    reaches: Reaches = None,
) -> PartCosts:
    """The costs of a model's fixed part and of any mixer and ffn in it.

    Args:
        profile: the device.
        model: gives the shared dimensions, and by its embedding's and layers' formats where to look up. What is no
            sum by a datasheet is taken as it is around this model (`served_costs`).
        load: the workload.
        quantity: what to count; not the throughput, which is no sum.
        backend: the runtime.
        formats: other formats that parts may be stored in. What a model costs beyond its parts stays that of
            `model`'s own format; the interval of times is the largest of all these formats.
        may_extrapolate: beyond the measured loads, continue the line through the nearest two instead of refusing.
            The interval widens by the difference between that and simply taking the nearest (`time_model`,
            `memory_model`). The same goes for variants beyond the measured ones (`between`).
        reaches: how all layers of a child may reach, where the cache of one hangs on the others (`counted`).

    Raises:
        InputError: the profile has no measurements for this model's shape, one of the formats or this load, or does
            not know the power that energy needs.
        ValueError: the quantity is the throughput.
    """
    if quantity == "parameters":
        return _parameter_costs(model)
    if quantity == "disk":
        return counting_of(backend).disk(model)
    known = what_is_known(profile, model, backend)
    source = Source(
        profile=profile,
        backend=backend,
        formats=_formats(profile, backend, model, formats),
        may_extrapolate=may_extrapolate,
        reaches=reaches,
    )
    try:
        return costs_from(known, source, model, load, quantity)
    except InputError:
        if not may_extrapolate:
            _check_beyond(known, source, model, load)
        raise


def _check_beyond(known: Known, source: Source, model: Model, load: Load) -> None:
    """Whether going beyond what was measured would help: an error that advises it must not lead to another.

    Raises:
        InputError: it would not, for something else that is measured is still unknown there.
    """
    beyond, unknown = replace(source, may_extrapolate=True), _unmeasured(source.profile, source.backend)
    for quantity in ("time_per_token", "time_to_first_token", "memory"):
        if quantity not in unknown and (quantity != "memory" or source.profile.memory):
            costs_from(known, beyond, model, load, quantity)


def latency_of_throughput(load: Load, tokens_per_s: float) -> float:
    """The request latency in seconds at which a load is written at so many tokens per second, above 0."""
    return load.batch * load.new_tokens / tokens_per_s


def throughput_of(load: Load, latency: Cost) -> Cost:
    """New tokens of all sequences per second, from the request latency; its interval turned round.

    Raises:
        ValueError: the latency's interval reaches down to nothing.
    """
    if latency.low <= 0:
        raise ValueError(f"a latency above 0; got {latency.low} s")
    num_tokens = load.batch * load.new_tokens
    return Cost(
        value=num_tokens / latency.value,
        low=num_tokens / latency.high,
        high=num_tokens / latency.low,
        origin=latency.origin,
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


def _formats(profile: Profile, backend: Backend, model: Model, given: Sequence[Format]) -> tuple[str, ...]:
    """The formats to look up: the one that the model's head stands for, those of its layers, those given.

    A head of plain numbers is measured in models of its own format. An integer head stands in models of any integer
    format: of those that were measured, the one that most parts of the model are in is taken, else one given, else
    any.
    """
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    counts = Counter(part.weights for part in parts if not isinstance(part, NoOp))
    own = sorted(counts, key=lambda weights: (-counts[weights], str(weights)))
    named = [str(weights) for weights in (*own, *given)]
    if model.head_format.group_size is None:
        return tuple(dict.fromkeys([str(model.head_format), *named]))
    measured = {row.format for row in (*profile.times, *profile.wholes) if row.backend == backend}
    choices = [*own, *given, *map(parse_format, sorted(measured))]
    integers = [str(weights) for weights in choices if weights.group_size is not None]
    first = next((name for name in integers if name in measured), None)
    return tuple(dict.fromkeys([first or (*integers, str(model.head_format))[0], *named]))
