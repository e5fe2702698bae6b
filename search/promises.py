"""What a plan promises: what its child costs on every device at every load, beside its parent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from blockwright.cost import Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Profile
from blockwright.profiler.cost_model import PartCosts, all_part_costs, reaches_of, throughput_of
from blockwright.search.build import Order, decision_of
from blockwright.search.plan import Absent, Promise
from blockwright.spec import Model

_NOT_COVERED = ("load", "memory")
"""What profiles complain of where a load was not measured, of times and of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """What is known, and where the profile does not tell."""

    promises: tuple[Promise, ...]
    absent: tuple[Absent, ...]


def promises_of(parent: Model, child: Model, order: Order, decided: Mapping[str, str]) -> Promises:
    """What runs measure, and what budgets are about, at the batches decided on.

    Where there are several devices, one of them need not have been measured at each other's loads.

    Raises:
        InputError: a profile is not of this parent, or does not tell what the only device costs.
    """
    order = replace(order, reaches=reaches_of(block.mixer for block in (*parent.layers, *child.layers)))
    promises: list[Promise] = []
    absent: list[Absent] = []
    for device in order.devices:
        for name, load in decided_loads(order, device, decided).items():
            try:
                known = _known(parent, device, load, order)
            except InputError as error:
                if len(order.devices) == 1 or not _is_not_covered(error, order.devices[device]):
                    raise
                known = {}
                absent.append(Absent(device=device, load=name, reason=f"{error.field}: {error.got}"))
            asked: list[Quantity] = [b.quantity for b in order.budgets if (b.device, b.load) == (device, name)]
            wanted: list[Quantity] = list(dict.fromkeys([*known, *asked]))
            for quantity in wanted:
                additive: Quantity = "request_latency" if quantity == "throughput" else quantity
                costs = known.get(additive) or order.costs(parent, device, load, additive)
                before, after = costs.of_model(parent), costs.of_model(child)
                if quantity == "throughput":
                    before, after = (_throughput(load, cost, f"{device}:{name}") for cost in (before, after))
                promises.append(Promise(quantity=quantity, device=device, load=name, parent=before, child=after))
    return Promises(promises=tuple(promises), absent=tuple(absent))


def decided_loads(order: Order, device: str, decided: Mapping[str, str]) -> dict[str, Load]:
    """Each load with the batch decided on; where nothing hangs on it, the first."""
    found = {}
    for name, loads in order.loads.items():
        batch = decided.get(decision_of(name, device))
        found[name] = next((load for load in loads if str(load.batch) == batch), loads[0])
    return found


def _known(parent: Model, device: str, load: Load, order: Order) -> dict[Quantity, PartCosts]:
    return all_part_costs(
        order.devices[device],
        parent,
        load,
        order.backend,
        formats=order.formats,
        may_extrapolate=order.may_extrapolate,
        reaches=order.reaches,
    )


def _is_not_covered(error: InputError, profile: Profile) -> bool:
    return error.field in [f"profile {profile.name}: {what}" for what in _NOT_COVERED]


def _throughput(load: Load, latency: Cost, place: str) -> Cost:
    if latency.low <= 0:
        raise InputError(
            f"throughput@{place}",
            got=f"a request latency of {latency.low:.3g} to {latency.high:.3g} s",
            expected="an interval above 0, for a throughput to have an upper end",
            remedy="Profile this load: it is too far from what was measured.",
        )
    return throughput_of(load, latency)
