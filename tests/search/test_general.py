"""What CP-SAT is given."""

import itertools
from collections.abc import Callable

import pytest

from blockwright.search.problem import Problem
from blockwright.search.solve import solve

Draw = Callable[..., Problem]


def test_a_model_that_cp_sat_refuses_is_an_error(block_problem: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers too large to be summed in 64 bits."""
    monkeypatch.setattr("blockwright.search.general._SCALE", 9 * 10**15)
    problem = next(p for p in map(block_problem, itertools.count()) if p.pairs and p.limits)
    with pytest.raises(RuntimeError, match=r"CP-SAT refuses its model: .*overflow"):
        solve(problem)
