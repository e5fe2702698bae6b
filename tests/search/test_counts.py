"""The choice with the most of something, against every choice there is."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockwright.search.counts import choose_most
from blockwright.search.problem import Choice, Limit, Problem, is_within, merged, score_of
from blockwright.spec import Candidate, GatedFFN, NoOp

Draw = Callable[..., Problem]
EveryChoice = Callable[[Problem], list[tuple[Choice, ...]]]


def _amount_of(choice: Choice) -> int:
    """Made up: the same for what is the same, 0 for what is nothing."""
    return sum(len(str(variant)) ** 2 for variant in choice.shape if not isinstance(variant, NoOp))


def _amount(chosen: tuple[Choice, ...]) -> int:
    return sum(map(_amount_of, chosen))


def _alike(problem: Problem, num_layers: int, seed: int = 0) -> Problem:
    """The first layer's mixers and ffns in every layer, with scores of their own."""
    generator = random.Random(seed)
    groups = []
    for layer in range(num_layers):
        for group in problem.groups[:2]:
            groups.append(
                tuple(
                    replace(c, candidates=(replace(c.candidates[0], layer=layer),), score=generator.random())
                    for c in group
                )
            )
    return replace(problem, groups=tuple(groups))


def _check(problem: Problem, every_choice: EveryChoice) -> bool:
    most = max(map(_amount, every_choice(problem)), default=None)
    chosen = choose_most(problem, _amount_of)
    assert (chosen is None) == (most is None)
    if chosen is None or most is None:
        return False
    assert is_within(problem, chosen)
    assert all(choice in group for choice, group in zip(chosen, problem.groups, strict=True))
    assert most * (1 - 1e-4) <= _amount(chosen) <= most
    return True


@pytest.mark.parametrize("block", range(4))
def test_it_is_the_most_of_every_choice(
    block: int, block_problem: Draw, layers_problem: Draw, every_choice: EveryChoice
) -> None:
    found = []
    for seed in range(15 * block, 15 * block + 15):
        found.append(_check(block_problem(seed, has_decisions=False), every_choice))
        found.append(_check(_alike(layers_problem(seed, has_decisions=False), 3), every_choice))
    assert any(found)


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_of_layers_that_are_alike_those_that_lose_least_are_changed(
    seed: int, is_contiguous: bool, layers_problem: Draw, every_choice: EveryChoice
) -> None:
    problem = _alike(layers_problem(seed, has_decisions=False, num_limits=1), 3)
    problem = replace(merged(problem), is_contiguous=True) if is_contiguous else problem
    chosen = choose_most(problem, _amount_of)
    if chosen is None:
        return
    same = [each for each in every_choice(problem) if _shapes(each) == _shapes(chosen)]
    if is_contiguous:  # which layers are nothing is settled before who takes what
        same = [each for each in same if [c.is_removed for c in each] == [c.is_removed for c in chosen]]
    assert score_of(problem, chosen) == pytest.approx(min(score_of(problem, each) for each in same))


def _shapes(chosen: tuple[Choice, ...]) -> list[str]:
    return sorted(str(choice.shape) for choice in chosen)


def test_many_layers_that_are_alike_are_counted_and_not_tried_one_by_one() -> None:
    generator = random.Random(0)
    costs = [tuple(float(width + generator.randint(0, 9)) for _ in range(3)) for width in range(0, 100, 9)]
    groups = tuple(
        tuple(
            Choice(
                candidates=(Candidate(layer=layer, part="ffn", variant=GatedFFN(width=9 * index + 1)),),
                score=generator.random(),
                costs=each,
            )
            for index, each in enumerate(costs)
        )
        for layer in range(160)
    )
    limits = tuple(Limit(text=f"b{i}", fixed=0.0, limit=160 * share) for i, share in enumerate((50.0, 52.0, 55.0)))
    problem = Problem(groups=groups, limits=limits)
    chosen = choose_most(problem, lambda choice: round(10 * choice.costs[0]), time_limit_s=10.0)
    assert chosen is not None and is_within(problem, chosen)
    assert sum(choice.costs[0] for choice in chosen) > 0.99 * 160 * 50.0
