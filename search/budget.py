"""Budgets as users write them: ``time_per_token@chat <= 60%``, ``memory <= 20GB``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from blockwright.cost import UNIT_OF, Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.units import parse_percent, parse_quantity

_QUANTITIES: dict[str, Quantity] = {name: name for name in UNIT_OF}
_FORM = re.compile(r"\s*(\w+)(?:@([\w.-]+))?\s*<=\s*(.+?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An upper bound on one cost at one load."""

    text: str
    quantity: Quantity
    load: str
    limit: float | None
    """In the quantity's base unit; None where it is a share."""
    share: float | None
    """Of the parent's cost at the same load; None where the limit is given."""

    def limit_for(self, parent: Cost) -> float:
        """The bound in the quantity's base unit."""
        return self.limit if self.limit is not None else parent.value * (self.share or 0.0)


def parse_budget(text: str, loads: Mapping[str, Load]) -> Budget:
    """Reads a budget.

    Args:
        text: ``quantity[@load] <= amount``, the amount with its unit or as a percentage of the parent.
        loads: the loads there are; one need not be named where there is only one.

    Raises:
        InputError: it has another form, an unknown quantity or load, or an amount without a unit.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise InputError(
            "budget",
            got=repr(text),
            expected="quantity[@load] <= amount, such as 'time_per_token@chat <= 60%' or 'memory <= 20GB'",
            remedy="Write it in this form.",
        )
    name, load, amount = match.groups()
    quantity = _QUANTITIES.get(name)
    if quantity is None:
        raise InputError(
            "budget",
            got=f"{name!r} in {text!r}",
            expected="one of " + ", ".join(UNIT_OF),
            remedy="Name a quantity that can be bounded.",
        )
    if load is None and len(loads) == 1:
        load = next(iter(loads))
    if load is None or load not in loads:
        raise InputError(
            "budget",
            got=f"{'no load' if load is None else repr(load)} in {text!r}",
            expected="one of the loads " + ", ".join(loads),
            remedy=f"Write {name}@LOAD <= {amount}.",
        )
    share = parse_percent(amount)
    limit = None if share is not None else parse_quantity(amount, UNIT_OF[quantity], f"budget {name}")
    return Budget(text=text, quantity=quantity, load=load, limit=limit, share=share)
