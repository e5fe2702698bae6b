"""The costs of a model as a sum over its mixers and ffns: what a search can add up by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockwright.cost import Cost, product, total
from blockwright.hw_profiles.profile import Backend, Profile
from blockwright.spec import FFN, Mixer, Model, Reach

Reaches = frozenset[Reach] | None
"""How the layers of a child may reach; None where that is not known."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where costs are looked up."""

    profile: Profile
    backend: Backend
    formats: tuple[str, ...]
    """Those that parts may be stored in. The first one's whole models tell what a model costs beyond its parts."""
    may_extrapolate: bool
    """Whether beyond what was measured a line is continued, at a wider interval, or the load refused."""
    reaches: Reaches = None
    """Of all layers that are asked about: runtimes may lay out the cache of one by the others'."""


@dataclass(frozen=True, slots=True, eq=False)
class Same:
    """A profile as a key of what is kept in memory: the very same object, for the tables in it have no hash."""

    profile: Profile

    def __hash__(self) -> int:
        return id(self.profile)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.profile is other.profile


def added(costs: Sequence[PartCosts]) -> PartCosts:
    """One cost after another: the sum, part by part."""
    return PartCosts(
        fixed=total(cost.fixed for cost in costs),
        of_mixer=lambda mixer: total(cost.of_mixer(mixer) for cost in costs),
        of_ffn=lambda ffn: total(cost.of_ffn(ffn) for cost in costs),
    )


def multiplied(costs: PartCosts, factor: Cost) -> PartCosts:
    """Every part's cost times the same factor."""
    return PartCosts(
        fixed=product(costs.fixed, factor),
        of_mixer=lambda mixer: product(costs.of_mixer(mixer), factor),
        of_ffn=lambda ffn: product(costs.of_ffn(ffn), factor),
    )
