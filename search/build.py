"""From scores, profiles, budgets and rules to a problem.

A choice costs the upper end of its interval where a budget bounds from above and the lower end where it bounds from
below, so that budgets hold there too. A throughput of T is a request latency of batch × new tokens / T, which adds up.
A load with several batches is a decision: a budget at it becomes a limit for each batch.
"""

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from blockwright.cost import Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend, Profile
from blockwright.profiler.cost_model import PartCosts, Reaches, latency_of_throughput, part_costs, reaches_of
from blockwright.search.budget import Amount, Budget
from blockwright.search.offered import offered
from blockwright.search.problem import Choice, Limit, Pair, Problem, merged
from blockwright.search.scores import ScoreTable
from blockwright.search.servable import servable
from blockwright.servable import Engine
from blockwright.spec import (
    Attention,
    Candidate,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    stored_as,
    with_format,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a child must look like beside its budgets."""

    servable_by: tuple[Engine, ...] = ()
    """Engines that must be able to load it."""
    most_shapes: int | None = None
    """The most shapes that its blocks may have, removed ones left aside; 1 is a homogeneous child."""
    removes_contiguously: bool = False
    """Whether removed layers stand next to each other."""
    keep_first: int = 0
    """So many first layers stay as the parent's."""
    keep_last: int = 0
    forbidden: tuple[str, ...] = ()
    """Patterns of candidates' names that must not be taken, such as ``layer-0[0-3]-ffn-none``."""
    forced: tuple[str, ...] = ()
    """Patterns of candidates' names: where one fits some candidate of a layer's part, one of those is taken."""


NO_RULES = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for."""

    devices: Mapping[str, Profile]
    """Profiles by name; the first is what a child is measured on in a run."""
    backend: Backend
    formats: tuple[Format, ...]
    """Formats that each layer may be stored in; the first is the head's and the embedding's."""
    loads: Mapping[str, tuple[Load, ...]]
    """Each with one batch, or several to choose from."""
    budgets: Sequence[Budget]
    metric: str = "kl"
    rules: Rules = NO_RULES
    pairs: tuple[Pair, ...] = ()
    """What candidates lose together beyond the sum of their scores, in fp32."""
    may_extrapolate: bool = False
    time_limit_s: float = 60.0
    tolerance: float = 0.0
    frontier_points: int = 0
    pool_size: int = 1
    min_layers_differ: int = 1
    compares: bool = False
    """Whether simpler ways to choose stand beside the plan."""
    reaches: Reaches = None
    """Of all layers that a child may have, where costs hang on them; see `build_problem`."""

    def costs(self, parent: Model, device: str, load: Load, quantity: Quantity) -> PartCosts:
        """What parts cost on a device at a load.

        Raises:
            InputError: the profile does not tell.
        """
        return part_costs(
            self.devices[device],
            with_format(parent, self.formats[0]),
            load,
            quantity,
            self.backend,
            formats=self.formats,
            may_extrapolate=self.may_extrapolate,
            reaches=self.reaches,
        )


def build_problem(table: ScoreTable, order: Order) -> Problem:
    """The problem in the solver's words: a group of choices for each layer's mixers and ffns, or whole blocks.

    Raises:
        InputError: a cost or a score is missing, or the rules leave a layer nothing to choose from.
    """
    _check_kept(order.rules, len(table.parent.layers))
    parent = with_format(table.parent, order.formats[0])
    order = replace(order, reaches=_reaches(table))
    rows = [row for budget in order.budgets for row in _rows(budget, table.parent, order)]
    by_group: dict[tuple[int, str], list[Choice]] = {}
    for candidate, value in offered(table, order.metric, order.formats):
        costs = tuple(row.cost_of(candidate) for row in rows)
        choice = Choice(candidates=(candidate,), score=value, costs=costs)
        by_group.setdefault((candidate.layer, candidate.part), []).append(choice)
    _check_layers(by_group, table.parent)
    candidates = [choice.candidates[0] for group in by_group.values() for choice in group]
    _check_patterns([candidate.name for candidate in candidates], order.rules)
    groups = [_ruled(by_group[key], parent, order.rules) for key in sorted(by_group)]
    problem = Problem(groups=tuple(groups), limits=tuple(row.limit for row in rows))
    problem = servable(problem, parent, order.rules.servable_by, candidates)
    pairs = tuple(_stored(pair, order.formats) for pair in order.pairs)
    if order.rules.most_shapes is None and not order.rules.removes_contiguously:
        return replace(problem, pairs=pairs)
    return replace(
        merged(problem),
        pairs=pairs,
        most_shapes=order.rules.most_shapes,
        is_contiguous=order.rules.removes_contiguously,
    )


def _reaches(table: ScoreTable) -> Reaches:
    offered = (score.candidate.variant for score in table.scores)
    own = (block.mixer for block in table.parent.layers)
    return reaches_of(variant for variant in (*offered, *own) if isinstance(variant, Attention))


def decision_of(load: str, device: str) -> str:
    """The name of the decision on a load's batch."""
    return f"batch of {load} on {device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One limit, and where the costs of candidates under it come from."""

    limit: Limit
    costs: PartCosts

    def cost_of(self, candidate: Candidate) -> float:
        cost = _cost_of(self.costs, candidate)
        return cost.low if self.limit.is_least else cost.high


def _rows(budget: Budget, parent: Model, order: Order) -> Iterator[_Row]:
    loads = order.loads[budget.load]
    for load in loads:
        quantity: Quantity = "request_latency" if budget.quantity == "throughput" else budget.quantity
        costs = order.costs(parent, budget.device, load, quantity)
        parent_cost = costs.of_model(with_format(parent, order.formats[0]))
        when = (decision_of(budget.load, budget.device), str(load.batch)) if len(loads) > 1 else None
        for is_least, amount in ((True, budget.least), (False, budget.most)):
            if amount is None:
                continue
            bounds_below = (
                is_least if budget.quantity != "throughput" else not is_least
            )  # the more of it, the less time
            limit = _limit(budget, amount, load, _base(order.devices[budget.device], parent_cost, bounds_below))
            fixed = costs.fixed.low if bounds_below else costs.fixed.high
            yield _Row(
                limit=Limit(text=budget.text, fixed=fixed, limit=limit, is_least=bounds_below, when=when), costs=costs
            )


def _base(device: Profile, parent_cost: Cost, bounds_below: bool) -> float:
    """What shares are taken of.

    Where no block was measured the interval is that of a whole device, wide, and the same for a child as for its
    parent: shares are then taken of the end that children's costs are taken from.
    """
    if device.times:
        return parent_cost.value
    return parent_cost.low if bounds_below else parent_cost.high


def _limit(budget: Budget, amount: Amount, load: Load, base: float) -> float:
    """What the cost may come to; of a throughput, the request latency."""
    if budget.quantity != "throughput":
        return amount.of(base)
    return latency_of_throughput(load, amount.of(load.batch * load.new_tokens / base))


def _stored(pair: Pair, formats: Sequence[Format]) -> Pair:
    """The pair in the only format asked for; where there are several it stands for the candidates in fp32."""
    if len(formats) > 1:
        return pair
    first, second = (replace(c, variant=stored_as(c.variant, formats[0])) for c in (pair.first, pair.second))
    return replace(pair, first=first, second=second)


def _ruled(choices: list[Choice], parent: Model, rules: Rules) -> tuple[Choice, ...]:
    """What the rules on single candidates leave of a group."""
    candidate = choices[0].candidates[0]
    is_kept = candidate.layer < rules.keep_first or candidate.layer >= len(parent.layers) - rules.keep_last
    own = getattr(parent.layers[candidate.layer], candidate.part)
    left = [c for c in choices if not _fits(c, rules.forbidden)]
    if is_kept:
        left = [c for c in left if _is_own(c.candidates[0].variant, own)]
    if any(_fits(c, rules.forced) for c in choices):
        left = [c for c in left if _fits(c, rules.forced)]
    if not left:
        raise InputError(
            f"rules: layer {candidate.layer}, {candidate.part}",
            got="no candidate that they allow",
            expected="one of " + ", ".join(c.candidates[0].name for c in choices),
            remedy="Change what is forbidden, forced or kept.",
        )
    return tuple(left)


def _check_kept(rules: Rules, num_layers: int) -> None:
    if rules.keep_first + rules.keep_last > num_layers:
        raise InputError(
            "--keep-first, --keep-last",
            got=f"{rules.keep_first} first and {rules.keep_last} last layers to keep",
            expected=f"together no more than the {num_layers} layers of the parent",
            remedy="Keep fewer.",
        )


def _check_layers(found: Collection[tuple[int, str]], parent: Model) -> None:
    for layer in range(len(parent.layers)):
        for part in ("mixer", "ffn"):
            if (layer, part) not in found:
                raise InputError(
                    f"scores: layer {layer}, {part}",
                    got="no candidate",
                    expected="a score of one at least in every layer, if only of the parent's own",
                    remedy="Run `blockwright score` again.",
                )


def _check_patterns(names: Sequence[str], rules: Rules) -> None:
    for flag, patterns in (("--forbid", rules.forbidden), ("--force", rules.forced)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise InputError(
                    flag,
                    got=repr(pattern),
                    expected=f"a pattern that fits some candidate, such as {names[0]}",
                    remedy="Correct the pattern: * stands for anything, ? for one character.",
                )


def _fits(choice: Choice, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(choice.candidates[0].name, pattern) for pattern in patterns)


def _is_own(variant: object, own: object) -> bool:
    """Whether a variant is the parent's own, in whatever format."""
    if isinstance(variant, NoOp) or isinstance(own, NoOp):
        return variant == own
    assert isinstance(variant, Attention | LinearMixer | GatedFFN | LinearFFN)
    assert isinstance(own, Attention | LinearMixer | GatedFFN | LinearFFN)
    return stored_as(variant, own.weights) == own


def _cost_of(costs: PartCosts, candidate: Candidate) -> Cost:
    match candidate.variant:
        case Attention() | LinearMixer() as mixer:
            return costs.of_mixer(mixer)
        case GatedFFN() | LinearFFN() as ffn:
            return costs.of_ffn(ffn)
        case NoOp() as nothing:
            return costs.of_mixer(nothing) if candidate.part == "mixer" else costs.of_ffn(nothing)
