"""Why there is no plan, and what each budget is worth, against every choice there is."""

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from blockwright.search import explain
from blockwright.search.explain import Clash, Move, explain_clash, fits, is_binding
from blockwright.search.problem import Choice, Limit, Problem, holds, is_within, score_of
from blockwright.search.solve import Feasible, Infeasible, NothingFound, Optimal, solve
from blockwright.strict import from_data, to_data
from clashes import all_decided, easiest, kept_limits, left_open, loosened, smallest_clash

Draw = Callable[..., Problem]
MakeChoice = Callable[..., Choice]
BATCHES = ("1", "2", "4")


@pytest.fixture
def budgets_problem(make_choice: MakeChoice) -> Draw:
    """Draws budgets as searches have them: some bound from both sides, some at every batch that may be decided on.

    What is cheap in one quantity is dear in the next, so that budgets clash.
    """

    def draw(seed: int) -> Problem:
        generator, limits = random.Random(seed), []
        for name in range(generator.randint(1, 3)):
            unit, text, kind = 10.0 ** generator.randint(-6, 9), f"budget {name}", generator.randint(0, 3)
            least, most = sorted(generator.uniform(0.05, 0.7) for _ in range(2))
            for when in [("batch", batch) for batch in BATCHES] if kind == 0 else [None]:
                limit = 4 * unit * most * generator.uniform(0.8, 1.4)
                limits += [Limit(text=text, fixed=0.1 * unit, limit=limit, when=when)]
                if kind == 1:
                    limits += [Limit(text=text, fixed=0.1 * unit, limit=4 * unit * least, is_least=True)]
        groups = tuple(
            tuple(_drawn(generator, make_choice, group, index, limits) for index in range(generator.randint(2, 4)))
            for group in range(4)
        )
        return Problem(groups=groups, limits=tuple(limits))

    return draw


def _drawn(generator: random.Random, make_choice: MakeChoice, group: int, index: int, limits: list[Limit]) -> Choice:
    size, costs = generator.random(), {}
    for limit in limits:
        share = size if limit.text in ("budget 0", "budget 2") else 1 - size
        costs.setdefault((limit.text, limit.when), 10 * limit.fixed * share * generator.uniform(0.8, 1.2))
    return make_choice(group, index, generator.random(), *(costs[limit.text, limit.when] for limit in limits))


@pytest.mark.parametrize("block", range(5))
def test_a_clash_is_what_trying_every_choice_says(block: int, budgets_problem: Draw) -> None:
    sizes = []
    for seed in range(30 * block, 30 * block + 30):
        problem = budgets_problem(seed)
        if kept_limits(problem, [limit.text for limit in problem.limits]):
            continue
        clash = explain_clash(problem, 30.0)
        assert clash.clashing == smallest_clash(problem) and clash.is_smallest
        for move in clash.moves:
            alone, needed, spread = easiest(problem, move.text)
            assert move.alone == pytest.approx(alone) and move.is_proven
            assert (move.needed is None) == (needed is None)
            if needed is not None and move.needed is not None and move.bound is not None:
                sign = -1 if move.is_least else 1
                assert -1e-9 * abs(needed) <= sign * (move.needed - needed) <= 1.01e-3 * spread
                assert sign * (needed - move.bound) >= -1e-9 * abs(needed)
        assert [move.text for move in clash.moves] == list(dict.fromkeys(limit.text for limit in problem.limits))
        sizes.append(len(clash.clashing))
    assert {1, 2} <= set(sizes)


def test_to_loosen_all_limits_by_the_share_told_is_just_enough(budgets_problem: Draw) -> None:
    shares = []
    for seed in range(60):
        problem = budgets_problem(seed)
        texts = [limit.text for limit in problem.limits]
        if kept_limits(problem, texts):
            continue
        clash = explain_clash(problem, 30.0)
        share = clash.loosening
        assert share is not None and share > 0 and clash.is_least_loosening
        assert kept_limits(loosened(problem, share), texts)
        assert not kept_limits(loosened(problem, 0.99 * share), texts)
        shares.append(share)
    assert min(shares) < 0.1 and max(shares) > 0.5


def test_limits_that_no_loosening_within_reason_meets_are_told(make_choice: MakeChoice) -> None:
    groups = ((make_choice(0, 0, 0.0, 100.0),),)
    clash = explain_clash(Problem(groups=groups, limits=(Limit(text="b", fixed=0.0, limit=1.0),)), 10.0)
    move = Move(text="b", limit=1.0, is_least=False, alone=100.0, needed=100.0, bound=100.0, is_proven=True, at={})
    assert clash == Clash(clashing=("b",), is_smallest=True, moves=(move,), loosening=None, is_least_loosening=True)


def test_limits_that_clash_among_the_others_leave_nothing_to_move(make_choice: MakeChoice) -> None:
    groups = ((make_choice(0, 0, 0.0, 5.0, 5.0, 0.0), make_choice(0, 1, 0.0, 1.0, 9.0, 0.0)),)
    ends = (3.0, 6.0, 1.0)
    limits = tuple(Limit(text=text, fixed=0.0, limit=end) for text, end in zip("abc", ends, strict=True))
    clash = explain_clash(Problem(groups=groups, limits=limits), 10.0)
    assert clash.clashing == ("a", "b")
    assert [(move.text, move.alone, move.needed) for move in clash.moves] == [
        ("a", 1.0, 5.0),
        ("b", 5.0, 9.0),
        ("c", 0.0, None),
    ]
    assert [move.is_proven for move in clash.moves] == [True, True, True]
    assert clash.loosening == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("time_limit_s", [-1.0, 0.0, 1e-9])
def test_without_time_nothing_is_claimed(
    time_limit_s: float, block_problem: Draw, budgets_problem: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every solve that has no time left is made to find nothing, as it does where problems are large."""
    monkeypatch.setattr(explain, "solve", lambda problem, time_limit_s, tolerance=0.0: NothingFound())
    for seed in range(20):
        for problem in (block_problem(seed), budgets_problem(seed)):
            if not problem.limits:
                continue
            clash = explain_clash(problem, time_limit_s)
            assert (clash.clashing, clash.is_smallest) == ((), False)
            assert (clash.loosening, clash.is_least_loosening) == (None, False)
            assert all((m.needed, m.bound, m.is_proven) == (None, None, False) for m in clash.moves)


@pytest.mark.parametrize("time_limit_s", [0.0, 1e-4, 1e-3, 1e-2])
def test_what_is_claimed_in_little_time_is_true(time_limit_s: float, budgets_problem: Draw) -> None:
    for seed in range(30):
        problem = budgets_problem(seed)
        texts = [limit.text for limit in problem.limits]
        if kept_limits(problem, texts):
            continue
        clash = explain_clash(problem, time_limit_s)
        assert not clash.clashing or not kept_limits(problem, clash.clashing)
        assert not clash.is_smallest or len(clash.clashing) == len(smallest_clash(problem))
        if clash.loosening is not None:
            assert kept_limits(loosened(problem, clash.loosening), texts)
            assert not clash.is_least_loosening or not kept_limits(loosened(problem, 0.99 * clash.loosening), texts)
        for move in clash.moves:
            needed = easiest(problem, move.text)[1]
            assert not (move.is_proven and move.needed is None) or needed is None


def test_a_question_that_takes_all_its_time_leaves_the_others_theirs(
    budgets_problem: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is answered in time, and yet each of them is given some."""
    now_s = [100.0]
    given: dict[str, list[float]] = {"clash or loosening": [], "move": []}

    def slow(kind: str) -> Callable[..., NothingFound]:
        def answer(problem: Problem, time_limit_s: float, tolerance: float = 0.0) -> NothingFound:
            given[kind].append(time_limit_s)
            now_s[0] += time_limit_s
            return NothingFound()

        return answer

    monkeypatch.setattr(explain, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(explain, "fits", slow("clash or loosening"))
    monkeypatch.setattr(explain, "solve", slow("move"))
    seed = next(s for s in range(99) if len(budgets_problem(s).limits) >= 3)
    explain_clash(budgets_problem(seed), 0.6)
    assert 100.5 < now_s[0] <= 100.6 + 1e-9
    assert max(given["move"]) > 0.02 and given["clash or loosening"][-1] < 0.01 < given["clash or loosening"][0]
    assert sum(given["move"]) == pytest.approx(0.2, rel=0.1)


def test_of_a_range_the_end_that_nothing_reaches_is_the_one_to_move(make_choice: MakeChoice) -> None:
    """Whatever time there is: moving the other end cannot help."""
    groups = ((make_choice(0, 0, 0.0, 9.0, 9.0), make_choice(0, 1, 0.0, 7.0, 7.0)),)
    limits = (
        Limit(text="3 <= a <= 5", fixed=0.0, limit=3.0, is_least=True),
        Limit(text="3 <= a <= 5", fixed=0.0, limit=5.0),
    )
    for time_limit_s in (0.0, 10.0):
        (move,) = explain_clash(Problem(groups=groups, limits=limits), time_limit_s).moves
        assert (move.limit, move.is_least, move.alone) == (5.0, False, 7.0)
    assert (move.needed, move.is_proven) == (7.0, True)


def test_what_is_one_over_what_was_asked_for_is_loosened_as_it_was_asked(budgets_problem: Draw) -> None:
    """A limit L on a latency is one of 1 / L on a throughput: 5 % less of that is L / 0.95."""
    shares = []
    for seed in range(40):
        problem = budgets_problem(seed)
        texts = [limit.text for limit in problem.limits]
        if kept_limits(problem, texts):
            continue
        share = explain_clash(problem, 30.0, inverse=["budget 0"]).loosening
        assert share is not None
        assert kept_limits(loosened(problem, share, "budget 0"), texts)
        assert not kept_limits(loosened(problem, 0.99 * share, "budget 0"), texts)
        shares.append(share)
    assert min(shares) < 0.1 and max(shares) > 0.5


def test_a_clash_is_plain_data(budgets_problem: Draw) -> None:
    for seed in range(40):
        problem = budgets_problem(seed)
        if isinstance(solve(problem), Infeasible):
            clash = explain_clash(problem, 30.0)
            text = json.dumps(to_data(clash), allow_nan=False)
            assert from_data(Clash, json.loads(text)) == clash


@pytest.mark.parametrize("block", range(4))
def test_something_is_found_to_fit_where_something_does(
    block: int, plain_problem: Draw, block_problem: Draw, budgets_problem: Draw, least_score: Callable[..., float]
) -> None:
    found = []
    for seed in range(40 * block, 40 * block + 40):
        problem = (plain_problem, block_problem, budgets_problem)[seed % 3](seed)
        answer = fits(problem, 20.0)
        assert not isinstance(answer, NothingFound)
        assert isinstance(answer, Infeasible) == math.isinf(least_score(problem))
        if isinstance(answer, Optimal | Feasible):
            chosen = tuple(
                next(c for c in group if c.candidates == taken.candidates)
                for taken, group in zip(answer.chosen, problem.groups, strict=True)
            )
            assert is_within(problem, chosen, answer.decided)
        found.append(not isinstance(answer, Infeasible))
    assert {True, False} == set(found)


@pytest.mark.parametrize("block", range(3))
def test_a_limit_binds_where_without_it_there_is_something_better(
    block: int, plain_problem: Draw, block_problem: Draw, budgets_problem: Draw
) -> None:
    found = []
    for seed in range(30 * block, 30 * block + 30):
        problem = (plain_problem, block_problem, budgets_problem)[seed % 3](seed)
        answer = solve(problem)
        if not isinstance(answer, Optimal):
            continue
        for index, limit in enumerate(problem.limits):
            limits = (*problem.limits[:index], left_open(limit), *problem.limits[index + 1 :])
            freed = replace(problem, limits=limits)
            best = min(
                score_of(freed, chosen)
                for chosen in itertools.product(*freed.groups)
                if any(is_within(freed, chosen, decided) for decided in all_decided(freed))
            )
            expected = holds(limit, answer.decided) and best < answer.score - 1e-12 * abs(answer.score)
            assert is_binding(problem, index, answer, 20.0) == expected
            found.append(expected)
    assert {True, False} == set(found)
