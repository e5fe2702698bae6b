"""What models are foretold to cost, on any devices at any loads. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockwright.cost import UNIT_OF, Cost, Load, Quantity
from blockwright.hw_profiles.profile import Backend, Profile, is_imported
from blockwright.profiler.cost_model import known_quantities, part_costs, reaches_of, throughput_of
from blockwright.profiler.counted import counting_of
from blockwright.profiler.imported_costs import imported_phases
from blockwright.profiler.memory_model import how_to_measure
from blockwright.spec import Format, Model, NoOp
from blockwright.strict import to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOrder:
    """What to foretell."""

    model: Model
    """Its layers may differ in format."""
    parent: Model | None
    """What it is to stand beside, in its own format; None for nothing."""
    devices: Mapping[str, Profile]
    loads: Mapping[str, Load]
    backend: Backend
    may_extrapolate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One quantity on one device at one load."""

    device: str
    load: str
    quantity: Quantity
    parent: Cost | None
    model: Cost


def predict_costs(order: PredictOrder) -> list[Prediction]:
    """All that the profiles tell, device by device and load by load.

    A throughput is left out where its latency's interval reaches down to nothing, and with all that needs it a phase
    of which a runtime that is not ours was read in no time.

    Raises:
        InputError: a profile does not tell of these blocks, formats or loads.
    """
    found: list[Prediction] = []
    for device, profile in order.devices.items():
        for name, load in order.loads.items():
            for quantity, costs in _costs(order, profile, load).items():
                parent, model = costs if order.parent is not None else (None, costs[0])
                found.append(Prediction(device=device, load=name, quantity=quantity, parent=parent, model=model))
    return found


def untold(order: PredictOrder) -> list[str]:
    """What is left out of each device for want of the times of a phase or of memory, why, and what would mend it."""
    words: list[str] = []
    for device, profile in order.devices.items():
        phases = (
            imported_phases(profile, order.backend) if is_imported(profile, order.backend) else {"prefill", "decode"}
        )
        if phases == {"decode"}:
            words.append(
                _words(device, order.backend, "writing one token", "reading the prompt", "time to first token")
            )
        if phases == {"prefill"} and any(load.new_tokens > 1 for load in order.loads.values()):
            words.append(_words(device, order.backend, "reading the prompt", "writing one token", "time per token"))
        if counting_of(order.backend).is_told == "where measured" and "memory" not in known_quantities(
            profile, order.backend
        ):
            words.append(
                f"{device}: no memory of {order.backend} was measured, so none is told. Profile this GPU again: "
                f"{how_to_measure(order.backend)}"
            )
    return words


def _words(device: str, backend: Backend, known: str, unknown: str, lost: str) -> str:
    return (
        f"{device}: the times read in of {backend} are of {known} alone. A whole request is both, so its {lost}, "
        f"latency, throughput and energy cannot be told. Read in the times of {unknown} too, into the same profile."
    )


def predictions_to_data(order: PredictOrder, found: list[Prediction]) -> list[dict[str, Any]]:
    """The same for programs: a record for each, with its profile, unit and load."""
    return [
        to_data(one)
        | {
            "profile": order.devices[one.device].name,
            "unit": UNIT_OF[one.quantity],
            "load": {"name": one.load} | to_data(order.loads[one.load]),
        }
        for one in found
    ]


def _costs(order: PredictOrder, profile: Profile, load: Load) -> dict[Quantity, list[Cost]]:
    """Of the parent, where there is one, and the model, from one sum over parts as a search adds it up."""
    models = [order.model] if order.parent is None else [order.parent, order.model]
    reaches = reaches_of(block.mixer for model in models for block in model.layers)
    found: dict[Quantity, list[Cost]] = {}
    for quantity in known_quantities(profile, order.backend):
        if quantity == "throughput":
            continue
        parts = part_costs(
            profile,
            models[0],
            load,
            quantity,
            order.backend,
            formats=_formats(models[-1]),
            may_extrapolate=order.may_extrapolate,
            reaches=reaches,
        )
        found[quantity] = [parts.of_model(model) for model in models]
    latencies = found.get("request_latency", [])
    if latencies and min(latency.low for latency in latencies) > 0:
        found["throughput"] = [throughput_of(load, latency) for latency in latencies]
    return {quantity: found[quantity] for quantity in UNIT_OF if quantity in found}


def _formats(model: Model) -> list[Format]:
    parts = [part for block in model.layers for part in (block.mixer, block.ffn)]
    return list(dict.fromkeys(part.weights for part in parts if not isinstance(part, NoOp)))
