"""Which candidates' scores the plan still hangs on, so that more text is spent on these only.

With the plan P of the scores known so far and its score U, the best plan Q that holds a candidate c has a score of
U + m_c. What both hold loses the same in both, whatever it loses; so Q is as good as P only where the scores of what
one of them holds and the other does not are off by m_c together. It is decided against c where m_c is more than all
their half-widths, w(P, Q); else more is to be known of all of them.

Most candidates are settled without finding Q. For prices λ with the bound β and the reduced scores r (`relaxation.py`)
no plan has a score below β + Σ_g r, so for every plan Q that holds c in group g

    m_c − w(P, Q) ≥ β − U + (r_c − w_c) + Σ_{h ≠ g} min_{d ∈ h} (r_d − w_d)

with w_d the half-widths that d in the place of P's choice adds; above 0 it is decided against c.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from blockwright.search.build import Order, build_problem
from blockwright.search.choose import candidates_of
from blockwright.search.problem import Choice, Problem, holds
from blockwright.search.relaxation import reduced_scores, relax
from blockwright.search.scores import ScoreTable
from blockwright.search.solve import Answer, Feasible, Infeasible, NothingFound, Optimal, prepare, solve
from blockwright.spec import FP32, Candidate, NoOp, stored_as

_TIME_LIMIT_S = 10.0


def undecided(table: ScoreTable, order: Order) -> set[Candidate]:
    """The candidates, as they stand in the table, that more is to be known of; all where no plan is found."""
    problem = build_problem(table, order)
    widths = {s.candidate: (s.estimate.high - s.estimate.low) / 2 for s in table.of_metric(order.metric)}
    answer = solve(problem, _TIME_LIMIT_S)
    if not isinstance(answer, Optimal | Feasible):
        return set(widths)
    held = set(candidates_of(answer.chosen))
    found: set[Candidate] = set()
    for candidate, slack in _slacks(problem, answer, widths).items():
        if candidate in held or slack > 0:
            continue
        found |= _in_doubt(candidate, _best_with(problem, candidate), answer, widths)
    return found


def _in_doubt(
    candidate: Candidate, best_with: Answer, answer: Optimal | Feasible, widths: Mapping[Candidate, float]
) -> set[Candidate]:
    """What the plan and the best one that holds a candidate differ in, where the intervals leave open which is better.

    Where the time was up before such a plan was found, the candidate and what the plan holds in its place.
    """
    match best_with:
        case Optimal() | Feasible():
            differ = _differ(answer.chosen, best_with.chosen, widths)
            return differ if best_with.bound - answer.score <= sum(widths[each] for each in differ) else set()
        case Infeasible():
            return set()
        case NothingFound():
            place = (candidate.layer, candidate.part)
            rival = next(c for c in candidates_of(answer.chosen) if (c.layer, c.part) == place)
            return {_scored(candidate, widths), _scored(rival, widths)}


def _slacks(problem: Problem, answer: Optimal | Feasible, widths: Mapping[Candidate, float]) -> dict[Candidate, float]:
    """For each candidate the least that m_c − w(P, Q) can be; -inf where nothing is known of it."""
    choices = [choice for group in problem.groups for choice in group]
    slack_C = np.full(len(choices), -np.inf)
    kept = [index for index, limit in enumerate(problem.limits) if holds(limit, answer.decided)]
    arrays, _ = prepare(problem).arrays.with_rows(kept).scaled()
    relaxation = None if problem.decisions else relax(arrays)  # with other decisions other limits hold
    if relaxation is not None:
        pairs = zip(problem.groups, answer.chosen, strict=True)
        differ_C = [_differ([own], [choice], widths) for group, own in pairs for choice in group]
        width_C = np.array([sum(widths[each] for each in differ) for differ in differ_C])
        each_C = reduced_scores(arrays, relaxation.prices_R) - width_C
        least_G = np.minimum.reduceat(each_C, arrays.starts_G)
        slack_C = relaxation.bound - answer.score + least_G.sum() + each_C - least_G[arrays.group_C]
    found: dict[Candidate, float] = {}
    for choice, slack in zip(choices, slack_C.tolist(), strict=True):
        for candidate in choice.candidates:
            found[candidate] = min(slack, found.get(candidate, np.inf))
    return found


def _best_with(problem: Problem, candidate: Candidate) -> Answer:
    """The best plan that holds a candidate."""
    groups = tuple(
        tuple(c for c in group if candidate in c.candidates) if _offers(group, candidate) else group
        for group in problem.groups
    )
    return solve(replace(problem, groups=groups), _TIME_LIMIT_S)


def _offers(group: tuple[Choice, ...], candidate: Candidate) -> bool:
    return any(candidate in choice.candidates for choice in group)


def _differ(one: Sequence[Choice], other: Sequence[Choice], widths: Mapping[Candidate, float]) -> set[Candidate]:
    """The candidates, as the table has them, that one holds and the other does not."""
    first, second = ({_scored(c, widths) for c in candidates_of(chosen)} for chosen in (one, other))
    return first ^ second


def _scored(candidate: Candidate, widths: Mapping[Candidate, float]) -> Candidate:
    """The candidate as the table has it: in its own format, or in fp32 where only that was scored."""
    if candidate in widths or isinstance(candidate.variant, NoOp):
        return candidate
    return replace(candidate, variant=stored_as(candidate.variant, FP32))
