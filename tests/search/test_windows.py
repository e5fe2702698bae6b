"""Windows in a search for TensorRT, whose caches hang on each other: held against children counted as wholes."""

import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockwright.cost import Load
from blockwright.hw_profiles.profile import Profile, TimeRow
from blockwright.profiler.counted import counting_of
from blockwright.search.budget import parse_budget
from blockwright.search.build import Order
from blockwright.search.choose import choose
from blockwright.search.plan import Plan
from blockwright.search.scores import ScoreTable
from blockwright.spec import FP16, Attention, Candidate, GatedFFN, Mixer, Model, NoOp, Window, stored_as, with_format
from blockwright.statistics import Estimate
from choosing import MakeTable

LONG = Load(batch=2, prompt_tokens=1500, new_tokens=500)
"""Of more slots than windows of up to 512 tokens go round in, which is 1024."""
WORKSPACE_BYTES = 50_000
LEAST_BEYOND_BYTES, MOST_BEYOND_BYTES = 0.98 * WORKSPACE_BYTES, 1.02 * WORKSPACE_BYTES
FULL = Attention(num_kv_heads=4)
NEAR = replace(FULL, reach=Window(num_tokens=16))
FARTHER = replace(FULL, reach=Window(num_tokens=700))
FEW = replace(NEAR, num_kv_heads=2)
EveryChild = Callable[..., list[tuple[float, Model]]]


@pytest.fixture
def device(make_profile: Callable[..., Profile]) -> Profile:
    """A window takes as long as what sees all."""
    made = make_profile([LONG], formats=[FP16])
    times = [replace(row, backend="tensorrt") for row in made.times]
    times += [_with_reach(row, tokens) for row in times for tokens in (16, 700) if row.variant.startswith("attention")]
    wholes, memory = ([replace(row, backend="tensorrt") for row in rows] for rows in (made.wholes, made.memory))
    return replace(made, times=tuple(times), wholes=tuple(wholes), memory=tuple(memory))


def _with_reach(row: TimeRow, num_tokens: int) -> TimeRow:
    return replace(row, variant=f"{row.variant}-w{num_tokens}")


@pytest.fixture
def table_of(make_table: MakeTable) -> Callable[..., ScoreTable]:
    """Scores of mixers in every layer: `table_of(FULL, NEAR)`; the parent's own, the first, lose nothing."""

    def make(*mixers: Mixer) -> ScoreTable:
        offered = [Candidate(layer=layer, part="mixer", variant=mixer) for layer in range(3) for mixer in mixers]
        offered += [
            Candidate(layer=layer, part="ffn", variant=ffn)
            for layer in range(3)
            for ffn in (GatedFFN(width=128), NoOp())
        ]
        table, free = make_table(offered, formats=[FP16]), Estimate(value=0.0, low=0.0, high=0.0, num_values=4)
        own = {part for block in with_format(table.parent, FP16).layers for part in (block.mixer, block.ffn)}
        scores = (replace(each, estimate=free) if each.candidate.variant in own else each for each in table.scores)
        return replace(table, scores=tuple(scores))

    return make


def _bytes_of(child: Model) -> int:
    return counting_of("tensorrt").whole_bytes(child, LONG)


def _order(device: Profile, most_bytes: float) -> Order:
    return Order(
        devices={device.name: device},
        backend="tensorrt",
        formats=(FP16,),
        loads={"chat": (LONG,)},
        budgets=[parse_budget(f"memory <= {most_bytes}B", {"chat": LONG}, [device.name])],
        time_limit_s=20.0,
    )


def _counted(plan: Plan) -> tuple[float, float]:
    """What is promised of weights and caches, at both ends."""
    promised = next(promise.child for promise in plan.promises if promise.quantity == "memory")
    return promised.low - LEAST_BEYOND_BYTES, promised.high - MOST_BEYOND_BYTES


def test_windows_of_one_length_are_chosen_and_promised_at_what_they_take(
    device: Profile, table_of: Callable[..., ScoreTable], every_child: EveryChild
) -> None:
    table = table_of(FULL, NEAR, FEW)
    children = every_child(table, [FP16])
    most = statistics.median_low(_bytes_of(child) for _, child in children)
    plan = choose(table, _order(device, most + MOST_BEYOND_BYTES))
    assert plan.score == pytest.approx(min(score for score, child in children if _bytes_of(child) <= most))
    assert plan.score > 0, "the budget asks for nothing"
    assert {block.mixer for block in plan.child.layers} & {stored_as(NEAR, FP16), stored_as(FEW, FP16)}
    assert _counted(plan) == pytest.approx((_bytes_of(plan.child),) * 2)


def test_windows_of_two_lengths_are_promised_within_what_they_may_take(
    device: Profile, table_of: Callable[..., ScoreTable], every_child: EveryChild
) -> None:
    table = table_of(FULL, NEAR, FARTHER)
    most = statistics.median_low(_bytes_of(child) for _, child in every_child(table, [FP16]))
    plan = choose(table, _order(device, most + MOST_BEYOND_BYTES))
    low, high = _counted(plan)
    assert low < _bytes_of(plan.child) <= high + 1e-3 <= most + 1
    assert {stored_as(NEAR, FP16), stored_as(FARTHER, FP16)} <= {block.mixer for block in plan.child.layers}
