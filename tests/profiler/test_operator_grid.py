"""The grid of operators: spread, distinct, and timed as what they say they are."""

from dataclasses import replace

import pytest

from blockwright.compile.engine import SessionSettings
from blockwright.profiler import operator_grid
from blockwright.profiler.clock import Effort, timing_of
from blockwright.profiler.operator_grid import GridCase, grid_cases
from blockwright.profiler.operators import Attend, Elementwise, Matmul

SESSION, QUICK = SessionSettings(num_threads=1), Effort(seconds=0.0, min_turns=1, num_warm_up=1)


def _cases(cache_bytes: int | None = None) -> list[GridCase]:
    return grid_cases(SESSION, QUICK, cache_bytes)


def test_every_operator_stands_in_the_grid_once_and_cases_have_names_of_their_own() -> None:
    cases = _cases()
    operators = [each for case in cases for each in case.operators]
    assert len(set(operators)) == len(operators)
    assert len({case.name for case in cases}) == len(cases)
    assert {each.rows for each in operators if isinstance(each, Matmul)} == {2**n for n in range(10)}
    assert {each.weights for each in operators if isinstance(each, Matmul)} == {
        "fp32",
        "int8-g32",
        "int4-g32",
        "int4-g128",
    }


def test_the_first_half_of_the_grid_has_some_of_every_kind() -> None:
    cases = _cases()
    early = [case.operators[0] for case in cases[: len(cases) // 2]]
    assert {type(each) for each in early} >= {Matmul, Attend}
    assert len({each.weights for each in early if isinstance(each, Matmul)}) == 4


def test_there_are_fewer_copies_of_what_is_beyond_the_cache_by_itself() -> None:
    few, many = (
        next(c.copies for c in _cases(size) if c.operators[0] == _cases()[0].operators[0]) for size in (2**10, 2**30)
    )
    assert few == 1 < many


def test_prepared_work_is_built_once_and_only_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    case, built, ran = _cases()[0], [], []

    def build(*_: object) -> object:
        built.append(1)
        return object()

    monkeypatch.setattr(operator_grid, "make_session", build)
    monkeypatch.setattr(operator_grid, "_run_of", lambda _, operator: lambda: ran.append(operator))
    work = case.prepared()
    assert (len(built), ran) == (1, [])
    work()
    work()
    assert len(built) == 1
    assert ran == [*case.operators, *case.operators]


@pytest.mark.parametrize("kind", [Matmul, Attend, Elementwise])
def test_a_case_gives_a_row_for_each_operator(kind: type) -> None:
    case = min((c for c in _cases() if type(c.operators[0]) is kind), key=lambda c: c.operators[-1].num_bytes)
    case = replace(case, effort=replace(QUICK, seconds=0.02, min_turns=10))
    case.prepared()()
    rows = case.rows([timing_of([samples]) for samples in case.sample()])
    assert rows and all(1e-9 < row.time_s < 1.0 for row in rows)
    assert {row.kind for row in rows} == {kind.__name__.lower()}
