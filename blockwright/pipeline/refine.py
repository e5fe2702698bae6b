"""Stage: beyond sums of scores. Whole plans are measured, candidates scored again around the best, and so on.

A round measures some plans by successive halving (`trials.py`). The best is measured part by part
(`search/refine.py`), which gives the next round its plans. The first round's are the plan of the best sum, its pool,
and those that simpler ways choose. Where some tokens are given to healing, the best plans of all rounds are distilled
for a while, by halving again, since those that lose least before distillation need not lose least after it.

The plan that looks best on the windows that chose it looks better there than it is (the winner's curse). So it is
measured again, beside the best sum's, on as many windows that chose nothing, and these are the plan's `whole`: there
the chosen one may turn out no better.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blockwright.files import digest_of, digest_of_files, write_json
from blockwright.library import INDEX, Library, read_library
from blockwright.model.parent import Parent, load_model
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.inputs import Text, check_text_suits, checkpoint_digest, read_text, windows_of
from blockwright.pipeline.kept import Kept, pair_terms
from blockwright.pipeline.search import SearchOrder, check_pool, full_order, profile_files, read_devices
from blockwright.pipeline.stage import Stage, check_is_no_folder, check_spares, running, whole
from blockwright.pipeline.trials import Healing, Trial, finished, first_end, halve, heal, windows_to_choose_by
from blockwright.pipeline.wholes import BATCH_WINDOWS, Wholes, in_fp32
from blockwright.search.build import Order, build_problem
from blockwright.search.choose import Steps, answer_of, candidates_of, child_of, plan_of
from blockwright.search.plan import Plan, Whole, read_plan, write_plan
from blockwright.search.pool import pool
from blockwright.search.problem import Choice, Pair, Problem, is_within, score_of
from blockwright.search.refine import additivity, apart, next_plans, pairs_to_measure
from blockwright.search.rivals import attempts
from blockwright.search.scores import ScoreTable, read_scores
from blockwright.search.solve import Feasible, Optimal, solve
from blockwright.spec import Candidate
from blockwright.statistics import estimate_mean
from blockwright.strict import to_data
from blockwright.train.distill import GkdSettings
from blockwright.train.losses import kl_and_cosine
from blockwright.train.sources import local_paths
from blockwright.train.windows import Windows

RECORD = "refine.json"
_SEED_SHIFT = 3
"""Plans are measured on other places of the training text than the library, scores and distillation come from."""
_HEAL_SEED_SHIFT = 4
_PLANS_PER_RADIUS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineOrder:
    """How to go beyond sums."""

    text: str
    window_tokens: int
    tokens: int
    """To measure a plan on, and a part of a plan; as many more for the plan that was chosen."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """All that a refinement works with."""

    kept: Kept
    document_N: np.ndarray
    """Which document each window begins in."""
    num_windows: int
    """The first so many choose; the others are for the plan that was chosen."""
    healing: Healing | None
    problem: Problem
    table: ScoreTable
    asked: Order
    order: RefineOrder


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
    output = paths["output"]
    check_is_no_folder(output)
    library, devices, text = read_library(paths["library"]), read_devices(profiles), read_text(order.text)
    inputs = {
        "search": to_data(search),
        "order": to_data(order),
        "parent": checkpoint_digest(parent.folder),
        "library": digest_of_files([paths["library"] / name for name in (INDEX, *library.files)]),
        "scores": digest_of_files([paths["scores"]]) if paths["scores"].exists() else None,
        "profiles": {name: digest_of(to_data(profile)) for name, profile in devices.items()},
        "text": text.digest,
    }
    reads = (paths["scores"], *whole(paths["library"]), *profile_files(profiles), *local_paths(order.text))
    check_spares(output.with_name(RECORD), (*reads, output))
    stage = Stage(name="refine", output=output, inputs=inputs, reads=reads)
    if (before := stage.reuse(lambda: read_plan(output))) is not None:
        return before
    table = read_scores(paths["scores"])
    check_pool(search, table.parent)
    asked = full_order(search, devices)
    wholes, windows, num_windows = _read_wholes(parent, library, paths["library"], text, order)
    with running(stage) as work:
        bench = _Bench(
            kept=Kept(wholes=wholes, work=work),
            document_N=windows.document_N,
            num_windows=num_windows,
            healing=_healing(parent, text, order) if order.heal_tokens else None,
            problem=build_problem(table, asked),
            table=table,
            asked=asked,
            order=order,
        )
        plan, record = _refine(bench)
        write_json(output.with_name(RECORD), record)
        write_plan(plan, output)
    return plan


def _read_wholes(
    parent: Parent, library: Library, folder: Path, text: Text, order: RefineOrder
) -> tuple[Wholes, Windows, int]:
    """What plans are made of, with their windows and how many of these choose."""
    length, seed = order.window_tokens, order.seed + _SEED_SHIFT
    windows, num_windows = windows_to_choose_by(parent, text, length=length, num_tokens=order.tokens, seed=seed)
    model = load_model(parent)
    check_text_suits(model, windows)
    return Wholes(model=model, library=library, folder=folder, ids_NT=windows.ids_NT), windows, num_windows


def _healing(parent: Parent, text: Text, order: RefineOrder) -> Healing:
    length, seed = order.window_tokens, order.seed + _HEAL_SEED_SHIFT
    return Healing(
        windows=windows_of(parent, text.training, length=length, num_tokens=order.heal_tokens, seed=seed),
        tokens=order.heal_tokens,
        num_plans=order.heal_plans,
        batch_windows=order.batch_windows,
        seed=order.seed,
        settings=GkdSettings(
            learning_rate=order.learning_rate, losses=kl_and_cosine(order.cosine_weight), checkpoint_steps=10**9
        ),
    )


def _refine(bench: _Bench) -> tuple[Plan, dict[str, Any]]:
    kept, num_windows = bench.kept, bench.num_windows
    best_sum = answer_of(bench.problem, bench.asked, bench.table)
    trials = [_trial(bench, chosen, way, 0) for chosen, way in _first_plans(bench, best_sum).items()]
    halve(kept, num_windows, trials, trials[:1])
    best = min(finished(trials, num_windows), key=lambda one: one.mean)
    for round_index in range(1, bench.order.rounds + 1):
        changes = _changes(bench, best, round_index)
        num_groups = len(bench.problem.groups)
        radii = sorted({1, 2, 4, num_groups // 4, num_groups // 2, num_groups} - {0})
        plans = next_plans(bench.problem, best.chosen, changes, radii, _PLANS_PER_RADIUS, bench.asked.time_limit_s)
        known = {one.spec for one in trials}
        found = [_trial(bench, chosen, f"round {round_index}", round_index) for chosen in plans]
        fresh = [one for one in found if one.spec not in known]
        if not fresh:
            break
        halve(kept, num_windows, fresh, [])
        trials += fresh
        better = min(finished(trials, num_windows), key=lambda one: one.mean)
        if better is best:
            break
        best = better
        say(f"refine    round {round_index}: KL {best.mean:.4f}")
    if bench.healing is not None:
        best = heal(kept, num_windows, trials, bench.healing)
    whole, again = _measure_again(bench, trials, best)
    plan = replace(_plan(bench, best_sum, best), whole=whole)
    return plan, _record(bench, trials, best) | {"again": again}


def _first_plans(bench: _Bench, best_sum: Optimal | Feasible) -> dict[tuple[Choice, ...], str]:
    """The best sum's first; those of the pool, with pairs, and of simpler ways after it; with the way of each."""
    problem, order, asked = bench.problem, bench.order, bench.asked
    limit_s, tolerance = asked.time_limit_s, asked.tolerance
    found = {best_sum.chosen: "best sum"}
    for answer in pool(problem, order.pool_size, 1, time_limit_s=limit_s, tolerance=tolerance, first=best_sum):
        found.setdefault(apart(problem, answer.chosen), "pool")
    if order.pairs:
        answer = solve(replace(problem, pairs=_pairs(bench, list(found))), limit_s, tolerance)
        if isinstance(answer, Optimal | Feasible):
            found.setdefault(answer.chosen, "pairs")
    for attempt in attempts(problem, bench.table.parent, bench.table.influence, limit_s):
        if attempt.chosen is not None:
            found.setdefault(apart(problem, attempt.chosen), attempt.name)
    return found


def _pairs(bench: _Bench, plans: Sequence[tuple[Choice, ...]]) -> tuple[Pair, ...]:
    """What the pairs that good plans hold most often lose beyond their scores, on a quarter of the windows."""
    taken = {candidate for plan in plans for candidate in candidates_of(plan)}
    parent = bench.table.parent
    own = {c for c in taken if in_fp32(c).variant == getattr(parent.layers[c.layer], c.part)}
    pairs = pairs_to_measure(plans, own, bench.order.pairs)
    with progress("refine, pairs", len(pairs)) as advance:
        return pair_terms(bench.kept, parent, pairs, first_end(bench.num_windows), on_pair=advance)


def _trial(bench: _Bench, chosen: tuple[Choice, ...], way: str, round_index: int) -> Trial:
    candidates = [in_fp32(candidate) for candidate in candidates_of(chosen)]
    return Trial(chosen=chosen, spec=child_of(bench.table.parent, candidates), way=way, round=round_index)


def _changes(bench: _Bench, best: Trial, round_index: int) -> dict[Candidate, float]:
    """What every candidate changes in the best plan."""
    choices = [choice for group in bench.problem.groups for choice in group]
    candidates = [candidate for choice in choices for candidate in choice.candidates]
    offered = list(dict.fromkeys(map(in_fp32, candidates)))
    end = windows_for_changes(bench.num_windows)
    with progress(f"refine, round {round_index}", len(offered) * -(-end // BATCH_WINDOWS)) as advance:
        found = bench.kept.changes(best.spec, offered, end, on_candidate=advance)
    return {candidate: found[in_fp32(candidate)] for candidate in candidates if in_fp32(candidate) in found}


def windows_for_changes(num_windows: int) -> int:
    """How many of the windows are spent on what each candidate changes: half of them."""
    return max(2, num_windows // 2)


def _measure_again(bench: _Bench, trials: Sequence[Trial], best: Trial) -> tuple[Whole, dict[str, Any]]:
    """What the plan and the best sum's lose on windows that chose neither; for the record how they differ, too.

    Both on the same windows, so that their difference is paired.
    """
    start, end = bench.num_windows, len(bench.document_N)
    kl_N, best_sum_N = map(np.array, bench.kept.losses([best.spec, trials[0].spec], start, end))
    estimates = {
        name: estimate_mean(values_N, bench.document_N[start:])
        for name, values_N in (("kl", kl_N), ("best_sum_kl", best_sum_N), ("difference", kl_N - best_sum_N))
    }
    whole = Whole(
        kl=estimates["kl"],
        best_sum_kl=estimates["best_sum_kl"],
        plans_measured=len(trials),
        rounds=max(one.round for one in trials),
    )
    return whole, {"windows": end - start} | to_data(estimates)


def _plan(bench: _Bench, best_sum: Optimal | Feasible, best: Trial) -> Plan:
    score = score_of(bench.problem, best.chosen)
    decisions = bench.problem.decisions
    taken = (dict(zip(decisions, each, strict=True)) for each in itertools.product(*decisions.values()))
    decided = next(each for each in taken if is_within(bench.problem, best.chosen, each))
    answer = Feasible(chosen=best.chosen, score=score, bound=min(score, best_sum.bound), decided=decided)
    return plan_of(answer, bench.problem, bench.table, bench.asked, Steps())


def _record(bench: _Bench, trials: Sequence[Trial], best: Trial) -> dict[str, Any]:
    done = finished(trials, bench.num_windows)
    sums = [score_of(bench.problem, one.chosen) for one in done]
    return {
        "windows": bench.num_windows,
        "pairs": bench.order.pairs,
        "changes": bench.kept.windows_of_changes(),
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
            for one in trials
        ],
    }
