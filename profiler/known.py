"""What a profile knows, and the phases of a load told from that: a prompt read, tokens written, and what both draw.

blocks of this shape              `time_model`, `memory_model`
operators                         `operator_costs`
a datasheet                       `served_costs`
whole models, on this backend     `imported_costs`
"""

from typing import Literal, assert_never

from blockwright.cost import Cost, Load, exact, product
from blockwright.errors import InputError
from blockwright.hw_profiles.datasheet_profile import is_datasheet
from blockwright.hw_profiles.profile import IMPORTED, Backend, Profile, is_imported, parent_of
from blockwright.hw_profiles.tried import TriedChild
from blockwright.profiler.counted import counting_of
from blockwright.profiler.imported_costs import imported_ratio, imported_times
from blockwright.profiler.memory_model import memory_costs
from blockwright.profiler.operator_costs import operator_costs, operator_memory
from blockwright.profiler.parts import PartCosts, Source, added, multiplied
from blockwright.profiler.points import decode_points, prefill_points, reads_of
from blockwright.profiler.served_costs import decode_phase, prefill_phase, served_memory
from blockwright.profiler.time_model import time_costs
from blockwright.profiler.tried import by_tried
from blockwright.spec import Model

Known = Literal["blocks", "operators", "datasheet", "wholes"]
"""What a profile knows that a model's costs can be told from."""

_SHAPE = ("hidden_size", "num_heads", "head_dim", "vocab_size", "has_qk_norm", "has_qkv_bias")
"""What decides the size of a model's blocks beside the blocks themselves."""


def what_is_known(profile: Profile, model: Model, backend: Backend) -> Known:
    """Blocks of the model's shape, else operators, else the datasheet; of runtimes that are not ours, whole models.

    Raises:
        InputError: nothing but blocks of another shape.
    """
    if is_imported(profile, backend):
        return "wholes"
    if is_datasheet(profile):
        return "datasheet"
    is_summed = bool(profile.operators) and backend not in IMPORTED  # operators are measured in runtimes of our own
    if is_summed and (profile.model is None or not profile.times or _differing(profile.model, model)):
        return "operators"
    measured = parent_of(profile)
    name = _differing(measured, model)
    if name is not None:
        raise InputError(
            f"profile {profile.name}: {name}",
            got=str(getattr(measured, name)),
            expected=str(getattr(model, name)),
            remedy="This profile measured blocks of another shape: blockwright profile --for PARENT.",
        )
    return "blocks"


def costs_from(
    known: Known,
    source: Source,
    model: Model,
    load: Load,
    quantity: Literal["time_per_token", "time_to_first_token", "request_latency", "throughput", "energy", "memory"],
) -> PartCosts:
    """The costs of parts at a load, of a quantity that hangs on the device.

    Raises:
        InputError: what is known does not tell.
        ValueError: the quantity is the throughput.
    """
    match quantity:
        case "time_per_token":
            return _token_costs(known, source, model, load)
        case "time_to_first_token":
            return _prompt_costs(known, source, model, load)
        case "request_latency":
            return _latency_costs(known, source, model, load)
        case "energy":
            return _energy_costs(known, source, model, load)
        case "memory":
            return _memory_costs(known, source, model, load)
        case "throughput":
            raise ValueError("throughput is no sum over parts: bound the request latency (latency_of_throughput)")
        case _:
            assert_never(quantity)


def _prompt_costs(known: Known, source: Source, model: Model, load: Load) -> PartCosts:
    match known:
        case "blocks":
            costs = time_costs(source, prefill_points(load, reads_of(source.profile, source.backend)))
            return by_tried(costs, source, _tried_at(source, load), "prefill")
        case "operators":
            return operator_costs(source, model, prefill_points(load))
        case "datasheet":
            return prefill_phase(source.profile, source.backend, model, load).times
        case "wholes":
            return imported_times(source, model, load, "prefill")
        case _:
            assert_never(known)


def _token_costs(known: Known, source: Source, model: Model, load: Load) -> PartCosts:
    match known:
        case "blocks":
            costs = time_costs(source, decode_points(load, reads_of(source.profile, source.backend)))
            return by_tried(costs, source, _tried_at(source, load), "decode")
        case "operators":
            return operator_costs(source, model, decode_points(load))
        case "datasheet":
            return decode_phase(source.profile, source.backend, model, load).times
        case "wholes":
            return imported_times(source, model, load, "decode")
        case _:
            assert_never(known)


def _tried_at(source: Source, load: Load) -> list[TriedChild]:
    """Children that were tried at this load, in the runtime that they are tried in."""
    return [one for one in source.profile.tried if one.load == load and source.backend == "onnxruntime"]


def _latency_costs(known: Known, source: Source, model: Model, load: Load) -> PartCosts:
    first = _prompt_costs(known, source, model, load)
    if load.new_tokens == 1:
        return first
    return added([first, multiplied(_token_costs(known, source, model, load), exact(load.new_tokens - 1))])


def _energy_costs(known: Known, source: Source, model: Model, load: Load) -> PartCosts:
    """Of one sequence: at one power where it was measured, at each phase's own by a datasheet."""
    if not is_datasheet(source.profile):
        power_w = product(_power_of(source.profile), exact(1 / load.batch))
        return multiplied(_latency_costs(known, source, model, load), power_w)
    phases = [_phase_energy(known, source, model, load, "prefill")]
    if load.new_tokens > 1:
        phases.append(multiplied(_phase_energy(known, source, model, load, "decode"), exact(load.new_tokens - 1)))
    return added(phases)


def _phase_energy(
    known: Known, source: Source, model: Model, load: Load, name: Literal["prefill", "decode"]
) -> PartCosts:
    """Of one sequence in one step. Whole models' times shift the datasheet's energy and leave it as uncertain."""
    phase = (prefill_phase if name == "prefill" else decode_phase)(source.profile, source.backend, model, load)
    assert phase.power_w is not None, "every datasheet has a power limit"
    scale = imported_ratio(source, load, name) if known == "wholes" else 1.0
    return multiplied(phase.times, product(phase.power_w, exact(scale / load.batch)))


def _memory_costs(known: Known, source: Source, model: Model, load: Load) -> PartCosts:
    match known:
        case "blocks":
            counted = counting_of(source.backend).memory(model, load, source.reaches)
            return memory_costs(source, counted, load)
        case "operators":
            return operator_memory(source, model, load)
        case "datasheet" | "wholes":
            return served_memory(source.profile, source.backend, model, load)
        case _:
            assert_never(known)


def _power_of(profile: Profile) -> Cost:
    power = profile.ceilings.busy_w
    if power is None:
        raise InputError(
            f"profile {profile.name}: ceilings.busy_w",
            got="none",
            expected="the power that the device draws while models run, which energy is counted from",
            remedy="Measure it where counters can be read, or give a profile that has power; it is never guessed.",
        )
    return Cost(value=power.value, low=power.low, high=power.high, origin="modelled")


def _differing(first: Model, second: Model) -> str | None:
    return next((name for name in _SHAPE if getattr(first, name) != getattr(second, name)), None)
