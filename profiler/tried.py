"""What a search chose is measured, and times go by it.

A search picks the child that the profile flatters most: among hundreds of plans within a few per cent of each other,
the one whose parts came out too fast (the winner's curse). On a shared 2-core Zen 3 random children were off by 1.4 to
2.2 % in the mean, chosen ones by 3 to 5 %, always too fast. So a chosen child may be tried (`hw_profiles.tried`): timed
in turn with its parent, which the machine's level of that hour slows alike. From then on the times of children at that
load lie on a line through the parent,

    time = parent + k · (time by the parts − parent)

whose slope k is fitted to the children that were tried. The parent keeps its time, a sum of parts stays one, and
children like the tried one take the time that it took.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from blockwright.cost import Cost, Quantity
from blockwright.hw_profiles.profile import parent_of
from blockwright.hw_profiles.tried import TriedChild
from blockwright.profiler.parts import PartCosts, Source
from blockwright.spec import Model, NoOp, parse_format, with_format

_RIDGE = 0.01
"""Variance of a share over that which k is expected to have, (0.02 / 0.2)²: a child with nearly the parent's time says
little about k, and is not made to."""
Phase = Literal["decode", "prefill"]
_QUANTITY_OF: dict[Phase, Quantity] = {"decode": "time_per_token", "prefill": "time_to_first_token"}


def by_tried(costs: PartCosts, source: Source, tried: Sequence[TriedChild], phase: Phase) -> PartCosts:
    """The costs on the line through the parent and the children that were tried.

    Args:
        costs: times at a load.
        source: where they were looked up.
        tried: children tried at this load; those in formats that the source does not tell of are passed over.
        phase: what the times are of.
    """
    own, known = source.formats[0], set(source.formats)
    told = [one for one in tried if one.parent_format == own and _formats_of(one.child) <= known]
    if not told:
        return costs
    parent_s = costs.of_model(with_format(parent_of(source.profile), parse_format(own))).value
    foretold = np.array([costs.of_model(one.child).value / parent_s - 1 for one in told])
    measured = np.array([one.shares[_QUANTITY_OF[phase]].median - 1 for one in told])
    slope = float((foretold @ measured + _RIDGE) / (foretold @ foretold + _RIDGE))
    return PartCosts(
        fixed=_moved(costs.fixed, slope, (1 - slope) * parent_s),
        of_mixer=lambda mixer: _moved(costs.of_mixer(mixer), slope),
        of_ffn=lambda ffn: _moved(costs.of_ffn(ffn), slope),
    )


def _formats_of(model: Model) -> set[str]:
    return {str(p.weights) for b in model.layers for p in (b.mixer, b.ffn) if not isinstance(p, NoOp)}


def _moved(cost: Cost, slope: float, shift: float = 0.0) -> Cost:
    """A cost on another line; its interval is as wide for its size as it was."""
    value = slope * cost.value + shift
    below, above = ((abs(end / cost.value - 1) if cost.value else 0.0) for end in (cost.low, cost.high))
    return Cost(value=value, low=value - below * abs(value), high=value + above * abs(value), origin=cost.origin)
