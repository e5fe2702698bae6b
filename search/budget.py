"""Budgets as users write them.

    quantity[@[device:]load] <= most             time_per_token@chat <= 60%
    quantity[@[device:]load] >= least            throughput@server:batch >= 2ktok/s
    least <= quantity[@[device:]load] <= most    2GB <= memory@phone:chat <= 3GB

An amount has its unit, or is a percentage of what the parent costs at the same load on the same device.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockwright.cost import UNIT_OF, Load, Quantity
from blockwright.errors import InputError
from blockwright.units import parse_percent, parse_quantity

_QUANTITIES: dict[str, Quantity] = {
    **{name: name for name in UNIT_OF},
    "ttft": "time_to_first_token",
    "tpot": "time_per_token",
    "latency": "request_latency",
}
_SAME_AT_EVERY_LOAD: tuple[Quantity, ...] = ("parameters", "disk")
_BOUND = re.compile(r"(<=|>=)")
_SUBJECT = re.compile(r"\s*(\w+)(?:@(?:([\w.-]+):)?([\w.-]+))?\s*")
_FORM = "quantity[@[device:]load] <= amount, such as 'time_per_token@chat <= 60%' or '2GB <= memory <= 3GB'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """So much, or a share of what the parent costs: exactly one of the two."""

    value: float | None
    """In the quantity's base unit."""
    share: float | None
    """Of the parent's cost."""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.share is None):
            raise ValueError("either a value or a share")

    def of(self, parent: float) -> float:
        """The amount in the quantity's base unit.

        Args:
            parent: what the parent costs, in the same unit.
        """
        return self.value if self.value is not None else parent * (self.share or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds on one cost at one load on one device."""

    text: str
    quantity: Quantity
    device: str
    """Empty where there is one device and it has no name."""
    load: str
    least: Amount | None
    most: Amount | None
    """One of the two bounds at least is given."""

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise ValueError("a least or a most")


def parse_budget(text: str, loads: Mapping[str, Load], devices: Sequence[str] = ("",)) -> Budget:
    """Reads a budget.

    Args:
        text: in one of the forms above. ``ttft``, ``tpot`` and ``latency`` are short for time_to_first_token,
            time_per_token and request_latency. A name alone after the ``@`` is a load's, or a device's if no load is
            called so.
        loads: the loads there are. One must be named where there are several and the quantity depends on it.
        devices: the devices there are. One must be named where there are several and the quantity depends on it.

    Raises:
        InputError: it has another form, an unknown quantity, load or device, or an amount that cannot be.
    """
    subject, least_text, most_text = _sides(text)
    _check_middle(text, least_text)
    match = _SUBJECT.fullmatch(subject)
    if not match:
        raise InputError("budget", got=repr(text), expected=_FORM, remedy="Write it in this form.")
    name, device, load = match.groups()
    quantity = _QUANTITIES.get(name)
    if quantity is None:
        raise InputError(
            "budget",
            got=f"{name!r} in {text!r}",
            expected="one of " + ", ".join(_QUANTITIES),
            remedy="Name a quantity that can be bounded, before its bound.",
        )
    if device is None and load is not None:
        device, load = _place(load, loads, devices, text)
    is_same = quantity in _SAME_AT_EVERY_LOAD
    least = None if least_text is None else _amount(least_text, quantity, name)
    most = None if most_text is None else _amount(most_text, quantity, name)
    budget = Budget(
        text=text,
        quantity=quantity,
        device=_pick("device", device, devices, text, is_same),
        load=_pick("load", load, list(loads), text, is_same),
        least=least,
        most=most,
    )
    _check_order(budget)
    return budget


def _sides(text: str) -> tuple[str, str | None, str | None]:
    """What is bounded, and the texts of the least and the most."""
    pieces = _BOUND.split(text)
    if any(sign in piece for piece in pieces[::2] for sign in "<>=≤≥"):
        raise InputError(
            "budget", got=repr(text), expected=_FORM, remedy="A bound is written <= or >=, and holds at its end too."
        )
    match pieces:
        case [subject, "<=", most]:
            return subject, None, most
        case [subject, ">=", least]:
            return subject, least, None
        case [least, "<=", subject, "<=", most]:
            return subject, least, most
        case [_, _, _, _, _]:
            remedy = "Write a range from its least to its most: least <= quantity <= most."
        case _:
            remedy = "Write it in this form."
    raise InputError("budget", got=repr(text), expected=_FORM, remedy=remedy)


def _check_middle(text: str, least: str | None) -> None:
    """Refuses a range whose quantity stands in front, which would else be taken for an amount."""
    first = _SUBJECT.fullmatch(least or "")
    if first is None or first[1] not in _QUANTITIES:
        return
    name, others = first[1], [piece.strip() for piece in _BOUND.split(text)[2::2]]
    for amount in others:
        _amount(amount, _QUANTITIES[name], name)
    raise InputError(
        "budget",
        got=f"{name} before two bounds in {text!r}",
        expected=_FORM,
        remedy="Write a range from its least to its most: least <= quantity <= most.",
    )


def _place(name: str, loads: Mapping[str, Load], devices: Sequence[str], text: str) -> tuple[str | None, str | None]:
    """The device and the load that a name alone stands for: one of the two."""
    if name in loads:
        return None, name
    if name in devices:
        return name, None
    named = [device for device in devices if device]
    raise InputError(
        "budget",
        got=f"{name!r} in {text!r}",
        expected="one of the loads " + ", ".join(loads) + (" or of the devices " + ", ".join(named) if named else ""),
        remedy="Write quantity@LOAD, or quantity@DEVICE:LOAD where there are several devices.",
    )


def _pick(kind: str, name: str | None, known: Sequence[str], text: str, is_same: bool) -> str:
    """The load or device of that name; without a name the only one, or any where all are the same."""
    if name is None and (len(known) == 1 or (is_same and known)):
        return known[0]
    if name is None or name not in known:
        names = [each for each in known if each]
        raise InputError(
            "budget",
            got=f"{f'no {kind}' if name is None else repr(name)} in {text!r}",
            expected=f"one of the {kind}s " + ", ".join(names) if names else f"one {kind}, which has no name",
            remedy="Write quantity@LOAD, or quantity@DEVICE:LOAD where there are several devices.",
        )
    return name


def _amount(text: str, quantity: Quantity, name: str) -> Amount:
    text = text.strip()
    share = parse_percent(text)
    value = parse_quantity(text, UNIT_OF[quantity], f"budget {name}") if share is None else None
    if not 0 < (value or share or 0.0) < math.inf:
        raise InputError(
            f"budget {name}",
            got=repr(text),
            expected="an amount above 0 and finite",
            remedy="Write how much there may be, with its unit.",
        )
    return Amount(value=value, share=share)


def _check_order(budget: Budget) -> None:
    """Refuses a range that is empty whatever the parent costs."""
    least, most = budget.least, budget.most
    if least is None or most is None or (least.share is None) != (most.share is None):
        return
    if least.of(1.0) > most.of(1.0):
        raise InputError(
            "budget",
            got=repr(budget.text),
            expected="a least that is no more than the most",
            remedy="Swap the two.",
        )
