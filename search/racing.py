"""Which candidates' scores the plan still hangs on, so that more text is spent on these only.

With the plan P of the scores known so far and its score U, the best plan that holds a candidate c has a score of
U + m_c. So c's score would have to be off by m_c for c to be in a plan as good as P. It is decided against c where m_c
is more than both half-widths together, that of c and that of what P holds in c's place; and about what P holds, where
it is decided against all its rivals. That m_c ≥ bound + r_c − U (`relaxation.py`) settles most candidates at once; for
the others the best plan that holds them is found.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from blockwright.search.build import Order, build_problem
from blockwright.search.choose import candidates_of
from blockwright.search.problem import Choice, Problem, holds
from blockwright.search.relaxation import reduced_scores, relax
from blockwright.search.scores import ScoreTable
from blockwright.search.solve import Feasible, Infeasible, NothingFound, Optimal, prepare, solve
from blockwright.spec import FP32, Candidate, NoOp, stored_as

_TIME_LIMIT_S = 10.0


def undecided(table: ScoreTable, order: Order) -> set[Candidate]:
    """The candidates, as they stand in the table, that more is to be known of; all where no plan is found."""
    problem = build_problem(table, order)
    widths = {s.candidate: (s.estimate.high - s.estimate.low) / 2 for s in table.of_metric(order.metric)}
    everything = set(widths)
    answer = solve(problem, _TIME_LIMIT_S)
    if not isinstance(answer, Optimal | Feasible):
        return everything
    kept = [index for index, limit in enumerate(problem.limits) if holds(limit, answer.decided)]
    arrays, _ = prepare(problem).arrays.with_rows(kept).scaled()
    relaxation = relax(arrays)
    if relaxation is None:
        return everything
    margins_C = relaxation.bound + reduced_scores(arrays, relaxation.prices_R) - answer.score
    held = {(c.layer, c.part): c for c in candidates_of(answer.chosen)}
    choices = [choice for group in problem.groups for choice in group]
    found: set[Candidate] = set()
    for choice, margin in zip(choices, margins_C, strict=True):
        for candidate in choice.candidates:
            rival = held[candidate.layer, candidate.part]
            pair = _scored(candidate, widths), _scored(rival, widths)
            width = widths[pair[0]] + widths[pair[1]]
            if candidate == rival or (margin > width and not problem.decisions):
                continue
            if _least_with(problem, candidate) - answer.score <= width:
                found |= set(pair)
    return found


def _least_with(problem: Problem, candidate: Candidate) -> float:
    """The score of the best plan that holds a candidate; no more than it, where the time is up."""
    groups = tuple(
        tuple(c for c in group if candidate in c.candidates) if _offers(group, candidate) else group
        for group in problem.groups
    )
    answer = solve(replace(problem, groups=groups), _TIME_LIMIT_S)
    match answer:
        case Optimal() | Feasible():
            return answer.bound
        case Infeasible():
            return np.inf
        case NothingFound():
            return -np.inf


def _offers(group: tuple[Choice, ...], candidate: Candidate) -> bool:
    return any(candidate in choice.candidates for choice in group)


def _scored(candidate: Candidate, widths: Mapping[Candidate, float]) -> Candidate:
    """The candidate as the table has it: in its own format, or in fp32 where only that was scored."""
    if candidate in widths or isinstance(candidate.variant, NoOp):
        return candidate
    return replace(candidate, variant=stored_as(candidate.variant, FP32))
