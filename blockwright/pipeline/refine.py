"""Stage: beyond sums of scores. Whole plans are measured, candidates scored again around the best, and so on.

A round measures some plans by successive halving: all on a quarter of the windows, the better half on twice as many,
until the last ones are measured on all. The best is measured part by part (`search/refine.py`), which gives the next
round its plans. The first round's are the plan of the best sum, its pool, and those that simpler ways choose. Where
some tokens are given to healing, the best plans of all rounds are distilled for a while, by halving again, since those
that lose least before distillation need not lose least after it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from blockwright.files import digest_of, digest_of_files, read_json, write_json
from blockwright.library import INDEX, read_library
from blockwright.model.parent import Parent, load_model
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.inputs import check_text_suits, checkpoint_digest, read_text, windows_of, windows_to_judge_by
from blockwright.pipeline.search import SearchOrder, check_pool, full_order, read_devices
from blockwright.pipeline.stage import Stage, running
from blockwright.pipeline.wholes import Wholes, in_fp32
from blockwright.search.build import Order, build_problem
from blockwright.search.choose import Steps, answer_of, candidates_of, child_of, plan_of
from blockwright.search.plan import Plan, Whole, read_plan, write_plan
from blockwright.search.pool import pool
from blockwright.search.problem import Choice, Pair, Problem, is_within, score_of
from blockwright.search.refine import additivity, apart, next_plans, pairs_of, pairs_to_measure
from blockwright.search.rivals import attempts
from blockwright.search.scores import ScoreTable, read_scores
from blockwright.search.solve import Feasible, Optimal, solve
from blockwright.spec import Candidate, Model
from blockwright.statistics import Estimate, estimate_mean
from blockwright.strict import to_data
from blockwright.train.distill import GkdSettings
from blockwright.train.windows import Windows, batches

RECORD = "refine.json"
_SEED_SHIFT = 3
"""Plans are measured on other places of the training text than the library, scores and distillation come from."""
_HEAL_SEED_SHIFT = 4
_FIRST_SHARE = 4
_PLANS_PER_RADIUS = 4
_CHILDREN_AT_ONCE = 4
"""Children in memory; each group takes one pass of the parent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineOrder:
    """How to go beyond sums."""

    text: str
    window_tokens: int
    tokens: int
    """To measure a plan on, and a part of a plan."""
    seed: int
    rounds: int
    pool_size: int
    """Plans to begin with."""
    pairs: int = 0
    """Pairs of candidates to measure, for one more plan to begin with; 0 for none."""
    heal_tokens: int = 0
    """To distil the last plan for while choosing; 0 for none."""
    heal_plans: int = 4
    """Plans to begin healing with."""
    batch_windows: int = 2
    learning_rate: float = 1e-3
    cosine_weight: float = 1.0


@dataclass(slots=True, kw_only=True)
class _Measured:
    """A plan and what it lost on each window so far."""

    chosen: tuple[Choice, ...]
    spec: Model
    way: str
    """How it was found."""
    round: int
    kl: list[float] = field(default_factory=list)
    healed_kl: list[float] | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.kl))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """All that a refinement works with."""

    wholes: Wholes
    windows: Windows
    healing: Windows | None
    problem: Problem
    table: ScoreTable
    asked: Order
    order: RefineOrder
    work: Path


def refine_plan(
    parent: Parent, paths: dict[str, Path], profiles: Sequence[str | Path], search: SearchOrder, order: RefineOrder
) -> Plan:
    """Chooses the child by measuring whole ones, or reads the plan that was made before from the same inputs.

    Args:
        parent: the library's.
        paths: of the ``library``, the ``scores`` and the ``output``, a plan.
        profiles: as `search_plan`.
        search: what to choose for.
        order: how to go beyond sums.

    Raises:
        InputError: the inputs do not go together, or no child is within the budgets.
    """
    library, devices, text = read_library(paths["library"]), read_devices(profiles), read_text(order.text)
    output = paths["output"]
    inputs = {
        "search": to_data(search),
        "order": to_data(order),
        "parent": checkpoint_digest(parent.folder),
        "library": digest_of_files([paths["library"] / name for name in (INDEX, *(e.file for e in library.entries))]),
        "scores": digest_of_files([paths["scores"]]) if paths["scores"].exists() else None,
        "profiles": {name: digest_of(to_data(profile)) for name, profile in devices.items()},
        "text": text.digest,
    }
    stage = Stage(name="refine", output=output, inputs=inputs)
    if (before := stage.reuse(lambda: read_plan(output))) is not None:
        return before
    table = read_scores(paths["scores"])
    check_pool(search, table.parent)
    asked = full_order(search, devices)
    length = order.window_tokens
    windows = windows_to_judge_by(
        parent, text.training, length=length, num_tokens=order.tokens, seed=order.seed + _SEED_SHIFT
    )
    healing = None
    if order.heal_tokens:
        seed = order.seed + _HEAL_SEED_SHIFT
        healing = windows_of(parent, text.training, length=length, num_tokens=order.heal_tokens, seed=seed)
    model = load_model(parent)
    check_text_suits(model, windows)
    wholes = Wholes(model=model, library=library, folder=paths["library"], ids_NT=windows.ids_NT)
    problem = build_problem(table, asked)
    with running(stage) as work:
        bench = _Bench(
            wholes=wholes,
            windows=windows,
            healing=healing,
            problem=problem,
            table=table,
            asked=asked,
            order=order,
            work=work,
        )
        plan, record = _refine(bench)
        write_json(output.with_name(RECORD), record)
        write_plan(plan, output)
    return plan


def _refine(bench: _Bench) -> tuple[Plan, dict[str, Any]]:
    best_sum = answer_of(bench.problem, bench.asked)
    measured = [_measured(bench, chosen, way, 0) for chosen, way in _first_plans(bench, best_sum).items()]
    _halve(bench, measured, measured[:1])
    best = min(_finished(bench, measured), key=lambda one: one.mean)
    for round_index in range(1, bench.order.rounds + 1):
        changes = _changes(bench, best, round_index)
        num_groups = len(bench.problem.groups)
        radii = sorted({1, 2, 4, num_groups // 4, num_groups // 2, num_groups} - {0})
        plans = next_plans(bench.problem, best.chosen, changes, radii, _PLANS_PER_RADIUS, bench.asked.time_limit_s)
        known = {one.spec for one in measured}
        found = [_measured(bench, chosen, f"round {round_index}", round_index) for chosen in plans]
        fresh = [one for one in found if one.spec not in known]
        if not fresh:
            break
        _halve(bench, fresh, [])
        measured += fresh
        better = min(_finished(bench, measured), key=lambda one: one.mean)
        if better is best:
            break
        best = better
        say(f"refine    round {round_index}: KL {best.mean:.4f}")
    if bench.healing is not None:
        best = _heal(bench, measured)
    return _plan(bench, best_sum, measured, best), _record(bench, measured, best)


def _first_plans(bench: _Bench, best_sum: Optimal | Feasible) -> dict[tuple[Choice, ...], str]:
    """The best sum's first; those of the pool, with pairs, and of simpler ways after it; with the way of each."""
    problem, order, time_limit_s = bench.problem, bench.order, bench.asked.time_limit_s
    found = {best_sum.chosen: "best sum"}
    pooled = pool(problem, order.pool_size, 1, time_limit_s=time_limit_s) if order.pool_size > 1 else []
    for answer in pooled:
        found.setdefault(apart(problem, answer.chosen), "pool")
    if order.pairs:
        answer = solve(replace(problem, pairs=_pairs(bench, list(found))), time_limit_s)
        if isinstance(answer, Optimal | Feasible):
            found.setdefault(answer.chosen, "pairs")
    for attempt in attempts(problem, bench.table.parent, bench.table.influence, time_limit_s):
        if attempt.chosen is not None:
            found.setdefault(apart(problem, attempt.chosen), attempt.name)
    return found


def _pairs(bench: _Bench, plans: Sequence[tuple[Choice, ...]]) -> tuple[Pair, ...]:
    """What the pairs that good plans hold most often lose beyond their scores, on a quarter of the windows."""
    values_of = {s.candidate: s.estimate.value for s in bench.table.of_metric(bench.asked.metric)}
    taken = {candidate for plan in plans for candidate in candidates_of(plan)}
    scores = {c: values_of[c] if c in values_of else values_of[in_fp32(c)] for c in taken}
    parent = bench.table.parent
    own = {c for c in scores if in_fp32(c).variant == getattr(parent.layers[c.layer], c.part)}
    pairs = pairs_to_measure(plans, own, bench.order.pairs)
    end = max(2, len(bench.windows.ids_NT) // _FIRST_SHARE)
    values: dict[tuple[Candidate, Candidate], float] = {}
    with progress("refine, pairs", len(pairs)) as advance:
        for pair in pairs:
            child = bench.wholes.child(child_of(parent, [in_fp32(candidate) for candidate in pair]))
            [losses] = bench.wholes.losses([child], 0, end)
            values[pair] = float(np.mean(losses))
            advance()
    return pairs_of(values, scores)


def _measured(bench: _Bench, chosen: tuple[Choice, ...], way: str, round_index: int) -> _Measured:
    candidates = [in_fp32(candidate) for candidate in candidates_of(chosen)]
    return _Measured(chosen=chosen, spec=child_of(bench.table.parent, candidates), way=way, round=round_index)


def _halve(bench: _Bench, plans: Sequence[_Measured], always: Sequence[_Measured]) -> None:
    """Measures plans, the worse half dropping out each time; `always` are measured on all windows."""
    num_windows = len(bench.windows.ids_NT)
    end = max(2, num_windows // _FIRST_SHARE)
    left = list(plans)
    start = 0
    with progress("refine", len(left)) as advance:
        while left:
            for first in range(0, len(left), _CHILDREN_AT_ONCE):
                some = left[first : first + _CHILDREN_AT_ONCE]
                children = [bench.wholes.child(one.spec) for one in some]
                for one, values in zip(some, bench.wholes.losses(children, start, end), strict=True):
                    one.kl += values
            if end == num_windows:
                break
            ranked = sorted(left, key=lambda one: one.mean)
            kept = ranked[: max(1, (len(ranked) + 1) // 2)]
            kept += [one for one in always if one not in kept]
            advance(to=len(plans) - len(kept))
            left, start, end = kept, end, min(num_windows, 2 * end)


def _finished(bench: _Bench, plans: Sequence[_Measured]) -> list[_Measured]:
    return [one for one in plans if len(one.kl) == len(bench.windows.ids_NT)]


def _changes(bench: _Bench, best: _Measured, round_index: int) -> dict[Any, float]:
    """What every candidate changes in the best plan; kept, so that a killed run need not measure it again."""
    path = bench.work / f"changes-{round_index}-{digest_of(to_data(best.spec))[:16]}.json"
    choices = [choice for group in bench.problem.groups for choice in group]
    offered = list(dict.fromkeys(in_fp32(candidate) for choice in choices for candidate in choice.candidates))
    end = windows_for_changes(len(bench.windows.ids_NT))
    if not path.exists():
        with progress(f"refine, round {round_index}", len(offered) * -(-end // 8)) as advance:
            found = bench.wholes.changes(best.spec, offered, end, on_candidate=advance)
        write_json(path, {candidate.name: value for candidate, value in found.items()})
    by_name = read_json(path)
    return {
        candidate: by_name[in_fp32(candidate).name]
        for choice in choices
        for candidate in choice.candidates
        if in_fp32(candidate).name in by_name
    }


def windows_for_changes(num_windows: int) -> int:
    """How many of the windows are spent on what each candidate changes: half of them."""
    return max(2, num_windows // 2)


def _heal(bench: _Bench, measured: Sequence[_Measured]) -> _Measured:
    """The plan that loses least after some distillation, by halving: each time twice the tokens for half the plans."""
    assert bench.healing is not None
    order = bench.order
    left = sorted(_finished(bench, measured), key=lambda one: one.mean)[: order.heal_plans]
    left += [one for one in measured[:1] if one not in left]
    num_halvings = max(0, int(np.ceil(np.log2(len(left)))))
    settings = GkdSettings(learning_rate=order.learning_rate, cosine_weight=order.cosine_weight, checkpoint_steps=10**9)
    for halving in range(num_halvings + 1):
        tokens = order.heal_tokens // 2 ** (num_halvings - halving)
        num_steps = max(1, tokens // (order.batch_windows * order.window_tokens))
        for one in left:
            child = bench.wholes.child(one.spec)
            steps = batches(bench.healing, order.batch_windows, num_steps, order.seed)
            bench.wholes.heal(child, steps, settings, bench.work / "heal.safetensors")
            [one.healed_kl] = bench.wholes.losses([child], 0, len(bench.windows.ids_NT))
        left = sorted(left, key=lambda one: np.mean(one.healed_kl or [np.inf]))[: max(1, (len(left) + 1) // 2)]
    return left[0]


def _plan(bench: _Bench, best_sum: Optimal | Feasible, measured: Sequence[_Measured], best: _Measured) -> Plan:
    document_N = bench.windows.document_N
    score = score_of(bench.problem, best.chosen)
    decisions = bench.problem.decisions
    taken = (dict(zip(decisions, each, strict=True)) for each in itertools.product(*decisions.values()))
    decided = next(each for each in taken if is_within(bench.problem, best.chosen, each))
    answer = Feasible(chosen=best.chosen, score=score, bound=min(score, best_sum.bound), decided=decided)
    plan = plan_of(answer, bench.problem, bench.table, bench.asked, Steps())

    def estimate(one: _Measured) -> Estimate:
        return estimate_mean(np.array(one.kl), document_N)

    whole = Whole(
        kl=estimate(best),
        best_sum_kl=estimate(measured[0]),
        plans_measured=len(measured),
        rounds=max(one.round for one in measured),
    )
    return replace(plan, whole=whole)


def _record(bench: _Bench, measured: Sequence[_Measured], best: _Measured) -> dict[str, Any]:
    done = _finished(bench, measured)
    sums = [score_of(bench.problem, one.chosen) for one in done]
    return {
        "windows": len(bench.windows.ids_NT),
        "pairs": bench.order.pairs,
        "changes": [windows_for_changes(len(bench.windows.ids_NT)) for _ in bench.work.glob("changes-*.json")],
        "additivity": to_data(additivity(sums, [one.mean for one in done])),
        "plans": [
            {
                "way": one.way,
                "round": one.round,
                "sum_of_scores": score_of(bench.problem, one.chosen),
                "kl": one.mean,
                "windows": len(one.kl),
                "healed_kl": None if one.healed_kl is None else float(np.mean(one.healed_kl)),
                "is_chosen": one is best,
                "candidates": [in_fp32(candidate).name for candidate in candidates_of(one.chosen)],
            }
            for one in measured
        ],
    }
