"""What to choose from, within what.

Data
    groups g               the mixers of a layer, or its ffns; or whole blocks, where mixer and ffn hang together
    choices c ∈ g          with score s_c and, for every limit b, cost a_bc
    f_b, l_b               what the model costs apart from its layers, and the limit
    decisions d            such as the batch at a load; each limit may belong to one alternative of one decision
    pairs (c, c′)          with the score q that both together lose beyond s_c + s_c′

Variables
    x_c ∈ {0, 1}           whether choice c is taken
    y_d                    the alternative that decision d takes

Objective
    minimise  Σ_c s_c · x_c  +  Σ_(c,c′) q · x_c · x_c′

Constraints
    (1)  Σ_{c ∈ g} x_c = 1                     for every group g
    (2)  f_b + Σ_c a_bc · x_c ≤ l_b + ε_b      for every limit b that always holds, or holds at the alternative taken;
                                               ≥ l_b − ε_b where it bounds from below
    (3)  blocks that are not nothing at all have at most k shapes
    (4)  the layers that are nothing at all stand next to each other

with ε_b = 10⁻⁹ · |l_b|: without it a budget of 100 % would shut out the parent itself, for the last digits of a sum
depend on its order.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from blockwright.errors import InputError
from blockwright.spec import Candidate, NoOp, Variant

_SLACK = 1e-9
"""ε as a share of a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One candidate, or a mixer and an ffn together; what it loses, and what it costs under each limit."""

    candidates: tuple[Candidate, ...]
    score: float
    costs: tuple[float, ...]

    @property
    def layer(self) -> int:
        """The layer it stands in."""
        return self.candidates[0].layer

    @property
    def shape(self) -> tuple[Variant, ...]:
        """What it is, wherever it stands."""
        return tuple(candidate.variant for candidate in self.candidates)

    @property
    def is_removed(self) -> bool:
        """Whether nothing is left of the block."""
        return all(isinstance(candidate.variant, NoOp) for candidate in self.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on one cost: what is spent in any case, and what may, or must, be spent in all."""

    text: str
    fixed: float
    limit: float
    is_least: bool = False
    """Whether it bounds from below."""
    is_rule: bool = False
    """Whether a rule asks for it, which has no amount that could be moved."""
    when: tuple[str, str] | None = None
    """The decision and its alternative that it belongs to; None where it always holds."""

    @property
    def end(self) -> float:
        """What a sum in floating point may come to and still count as within: the limit and ε."""
        return self.limit + (-1 if self.is_least else 1) * _SLACK * abs(self.limit)

    def allows(self, cost: float) -> bool:
        """Whether a cost, the fixed one included, is within."""
        return cost >= self.end if self.is_least else cost <= self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What two candidates lose together beyond the sum of their scores."""

    first: Candidate
    second: Candidate
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to choose from, and within what."""

    groups: tuple[tuple[Choice, ...], ...]
    limits: tuple[Limit, ...]
    pairs: tuple[Pair, ...] = ()
    most_shapes: int | None = None
    """The most shapes that blocks may have, those that are nothing left aside; groups must be whole blocks."""
    is_contiguous: bool = False
    """Whether layers that are nothing stand next to each other; groups must be whole blocks."""

    def __post_init__(self) -> None:
        for place, group in enumerate(self.groups):
            if not group:
                before = f", after that of layer {self.groups[place - 1][0].layer}" if place else ""
                raise InputError(
                    f"group {place + 1} of {len(self.groups)}{before}",
                    got="nothing to choose from",
                    expected="a choice at least",
                    remedy="Give it one, or leave the group out.",
                )
            for choice in group:
                _check(choice, self.limits)
        for limit in self.limits:
            if not math.isfinite(limit.fixed) or math.isnan(limit.limit):
                raise InputError(
                    f"limit {limit.text}",
                    got=f"{limit.limit}, of which {limit.fixed} in any case",
                    expected="numbers",
                    remedy="Correct the budget, or profile again.",
                )
        for pair in self.pairs:
            if not math.isfinite(pair.score):
                raise InputError(
                    f"pair {pair.first.name}, {pair.second.name}",
                    got=pair.score,
                    expected="a finite score",
                    remedy="Score this pair again.",
                )
        if (self.most_shapes is not None or self.is_contiguous) and not all(
            len(choice.candidates) == 2 for group in self.groups for choice in group
        ):
            raise ValueError("whole blocks as groups, which `merged` makes, for rules on blocks")

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """Each decision's alternatives."""
        found: dict[str, dict[str, None]] = {}
        for limit in self.limits:
            if limit.when is not None:
                found.setdefault(limit.when[0], {})[limit.when[1]] = None
        return {name: tuple(alternatives) for name, alternatives in found.items()}


def _check(choice: Choice, limits: Sequence[Limit]) -> None:
    assert len(choice.costs) == len(limits)
    if math.isfinite(sum(choice.costs, choice.score)):
        return
    named = [("score", choice.score), *zip((f"cost under {limit.text}" for limit in limits), choice.costs, strict=True)]
    for name, number in named:
        if not math.isfinite(number):
            raise InputError(
                " and ".join(f"layer {c.layer}, {c.part}, {c.name}" for c in choice.candidates) + f": {name}",
                got=number,
                expected="a finite number",
                remedy="Score or profile this candidate again.",
            )


def holds(limit: Limit, decided: dict[str, str]) -> bool:
    """Whether a limit holds when decisions are taken so."""
    return limit.when is None or decided.get(limit.when[0]) == limit.when[1]


def spent(problem: Problem, chosen: Sequence[Choice]) -> list[float]:
    """What a choice costs under each limit."""
    return [limit.fixed + sum(c.costs[i] for c in chosen) for i, limit in enumerate(problem.limits)]


def is_within(
    problem: Problem,
    chosen: Sequence[Choice],
    decided: dict[str, str] | None = None,
    limits: Sequence[Limit] | None = None,
) -> bool:
    """Whether a choice is within every limit that holds, and keeps the rules; given limits stand for the problem's."""
    costs = zip(problem.limits if limits is None else limits, spent(problem, chosen), strict=True)
    if not all(limit.allows(cost) for limit, cost in costs if holds(limit, decided or {})):
        return False
    if problem.most_shapes is not None:
        shapes = {choice.shape for choice in chosen if not choice.is_removed}
        if len(shapes) > problem.most_shapes:
            return False
    return not problem.is_contiguous or num_runs([choice.is_removed for choice in chosen]) <= 1


def num_runs(marked: Sequence[bool]) -> int:
    """How many runs of marked positions there are."""
    return sum(mark and not before for before, mark in zip((False, *marked), marked, strict=False))


def score_of(problem: Problem, chosen: Sequence[Choice]) -> float:
    """The sum of scores, pairs included."""
    taken = {candidate for choice in chosen for candidate in choice.candidates}
    together = sum(pair.score for pair in problem.pairs if pair.first in taken and pair.second in taken)
    return sum(choice.score for choice in chosen) + together


def merged(problem: Problem) -> Problem:
    """The same problem with whole blocks as groups: every mixer of a layer with every ffn."""
    layers: dict[int, list[tuple[Choice, ...]]] = {}
    for group in problem.groups:
        layers.setdefault(group[0].layer, []).append(group)
    return replace(problem, groups=tuple(tuple(_blocks(groups)) for _, groups in sorted(layers.items())))


def _blocks(groups: Sequence[tuple[Choice, ...]]) -> list[Choice]:
    if len(groups) == 1:
        return list(groups[0])
    return [
        Choice(
            candidates=tuple(sorted((c for part in parts for c in part.candidates), key=lambda c: c.part != "mixer")),
            score=sum(part.score for part in parts),
            costs=tuple(map(sum, zip(*(part.costs for part in parts), strict=True))),
        )
        for parts in itertools.product(*groups)
    ]
