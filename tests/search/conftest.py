"""Small random problems of every kind, every choice they hold, and every child behind scores."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blockwright.cost import Cost, Load, Quantity
from blockwright.hw_profiles.profile import Profile
from blockwright.profiler.cost_model import predict
from blockwright.search.budget import parse_budget
from blockwright.search.build import Order
from blockwright.search.choose import child_of
from blockwright.search.problem import Choice, Limit, Pair, Problem, is_within, merged, score_of
from blockwright.search.scores import Score, ScoreTable
from blockwright.spec import (
    FFN,
    FP32,
    Attention,
    Candidate,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    with_format,
)
from choosing import LOAD, MakeOrder

MIXERS: list[Mixer] = [Attention(num_kv_heads=2), LinearMixer(), NoOp()]
FFNS: list[FFN] = [GatedFFN(width=64), GatedFFN(width=32), LinearFFN(), NoOp()]


@pytest.fixture(scope="session")
def make_choice() -> Callable[..., Choice]:
    """Makes one of a group's choices: `make_choice(group, index, score, *costs)`."""
    return _choice


@pytest.fixture(scope="session")
def plain_problem() -> Callable[..., Problem]:
    """Draws groups in any unit: `plain_problem(seed, has_decisions=False, num_limits=2)`."""

    def draw(seed: int, has_decisions: bool = True, num_limits: int | None = None) -> Problem:
        generator = random.Random(seed)
        count = generator.randint(0, 4) if num_limits is None else num_limits
        units = [10.0 ** generator.randint(-9, 9) for _ in range(count)]
        scale, shift = 10.0 ** generator.randint(-6, 3), generator.choice([0.0, 0.0, 0.5])
        groups = tuple(
            tuple(
                _choice(
                    group, index, scale * (generator.random() - shift), *(unit * generator.random() for unit in units)
                )
                for index in range(generator.randint(1, 4))
            )
            for group in range(generator.randint(1, 6))
        )
        return Problem(groups=groups, limits=_limits(generator, units, len(groups), has_decisions))

    return draw


@pytest.fixture(scope="session")
def layers_problem() -> Callable[..., Problem]:
    """Draws layers, a group for the mixers and one for the ffns of each: `layers_problem(seed, num_layers=3)`."""

    def draw(
        seed: int, num_layers: int | None = None, has_decisions: bool = True, num_limits: int | None = None
    ) -> Problem:
        generator = random.Random(seed)
        return _layers(generator, num_layers or generator.randint(2, 3), has_decisions, num_limits)

    return draw


@pytest.fixture(scope="session")
def block_problem() -> Callable[..., Problem]:
    """Draws whole blocks, with pairs, a limit on shapes, removed layers side by side: `block_problem(seed)`."""

    def draw(seed: int, has_decisions: bool = True, num_limits: int | None = None) -> Problem:
        generator = random.Random(seed)
        apart = _layers(generator, generator.randint(2, 3), has_decisions, num_limits)
        everything = [choice.candidates[0] for group in apart.groups for choice in group]
        pairs = [
            Pair(first=first, second=second, score=generator.uniform(-0.5, 0.5))
            for first, second in itertools.combinations(everything, 2)
            if (first.layer, first.part) != (second.layer, second.part) and generator.random() < 0.15
        ]
        return replace(
            merged(apart),
            pairs=tuple(pairs) if generator.random() < 0.6 else (),
            most_shapes=generator.choice([None, 1, 1, 2]),
            is_contiguous=generator.random() < 0.4,
        )

    return draw


@pytest.fixture(scope="session")
def every_choice() -> Callable[[Problem], list[tuple[Choice, ...]]]:
    """Gives every choice within the limits, at one alternative of every decision at least, the best first."""
    return _every_choice


@pytest.fixture(scope="session")
def least_score() -> Callable[[Problem], float]:
    """Gives the least score of any choice within the limits; infinite where there is none."""
    return lambda problem: min((score_of(problem, chosen) for chosen in _every_choice(problem)), default=math.inf)


Costs = dict[Quantity, Cost]


@pytest.fixture(scope="session")
def every_child() -> Callable[[ScoreTable, Sequence[Format]], list[tuple[float, Model]]]:
    """Gives every child of a table's candidates with its sum of scores: `every_child(table, formats)`."""

    def give(table: ScoreTable, formats: Sequence[Format] = (FP32,)) -> list[tuple[float, Model]]:
        groups: dict[tuple[int, str], list[Score]] = {}
        for score in table.scores:
            groups.setdefault((score.candidate.layer, score.candidate.part), []).append(score)
        parent = with_format(table.parent, formats[0])
        return [
            (sum(s.estimate.value for s in scores), child_of(parent, [s.candidate for s in scores]))
            for scores in itertools.product(*groups.values())
        ]

    return give


@pytest.fixture(scope="session")
def costs_of() -> Callable[..., Costs]:
    """Predicts children as wholes: `costs_of(profile, child, load, formats)`; layers cost alike in any order."""
    known: dict[tuple, Costs] = {}

    def give(profile: Profile, child: Model, load: Load, formats: Sequence[Format] = (FP32,)) -> Costs:
        parts = sorted(str(part) for block in child.layers for part in (("mixer", block.mixer), ("ffn", block.ffn)))
        key = (profile.name, load, tuple(formats), *parts)
        if key not in known:
            known[key] = predict(profile, child, load, formats=formats)
        return known[key]

    return give


def _choice(group: int, index: int, score: float, *costs: float) -> Choice:
    candidate = Candidate(layer=group, part="ffn", variant=GatedFFN(width=index + 1))
    return Choice(candidates=(candidate,), score=score, costs=costs)


def _limits(
    generator: random.Random, units: list[float], num_groups: int, has_decisions: bool = True
) -> tuple[Limit, ...]:
    """Of every kind: from above, from below, always, or at one alternative of a decision."""
    limits = []
    for index, unit in enumerate(units):
        is_least = generator.random() < 0.25
        when = (f"d{generator.randint(0, 1)}", f"a{generator.randint(0, 2)}") if generator.random() < 0.4 else None
        share = 0.1 + generator.random() * (0.4 if is_least else 0.7)
        limit = unit * (0.1 + share * num_groups)
        limits.append(
            Limit(
                text=f"b{index}",
                fixed=0.1 * unit,
                limit=limit,
                is_least=is_least,
                when=when if has_decisions else None,
            )
        )
    return tuple(limits)


def _layers(generator: random.Random, num_layers: int, has_decisions: bool, num_limits: int | None) -> Problem:
    count = generator.randint(0, 2) if num_limits is None else num_limits
    units = [10.0 ** generator.randint(-6, 6) for _ in range(count)]
    groups = []
    for layer in range(num_layers):
        mixers = generator.sample(MIXERS, generator.randint(1, 3))
        ffns = generator.sample(FFNS, generator.randint(1, 3))
        parts = [[Candidate(layer=layer, part="mixer", variant=mixer) for mixer in mixers]]
        parts.append([Candidate(layer=layer, part="ffn", variant=ffn) for ffn in ffns])
        groups += [
            tuple(
                Choice(
                    candidates=(candidate,),
                    score=generator.random(),
                    costs=tuple(unit * generator.random() for unit in units),
                )
                for candidate in part
            )
            for part in parts
        ]
    return Problem(groups=tuple(groups), limits=_limits(generator, units, len(groups), has_decisions))


def _every_choice(problem: Problem) -> list[tuple[Choice, ...]]:
    decisions = problem.decisions
    found = [
        chosen
        for chosen in itertools.product(*problem.groups)
        if any(
            is_within(problem, chosen, dict(zip(decisions, taken, strict=True)))
            for taken in itertools.product(*decisions.values())
        )
    ]
    return sorted(found, key=lambda chosen: score_of(problem, chosen))


@pytest.fixture
def profile(make_profile: Callable[..., Profile]) -> Profile:
    return make_profile([LOAD])


@pytest.fixture
def order(profile: Profile) -> MakeOrder:
    """Makes an order for one device and one load: `order("memory <= 80%", frontier_points=4)`."""

    def make(*budgets: str, device: Profile = profile, **changes: object) -> Order:
        loads = {"chat": LOAD}
        plain = Order(
            devices={device.name: device},
            backend="onnxruntime",
            formats=(FP32,),
            loads={name: (load,) for name, load in loads.items()},
            budgets=[parse_budget(text, loads, [device.name]) for text in budgets],
            time_limit_s=20.0,
        )
        return replace(plain, **changes)  # type: ignore[arg-type]

    return make
