"""Many answers of one problem, ours beside CBC's: pools and frontiers, two sections of `search.py`."""

import itertools
import time
from dataclasses import replace
from functools import partial

import numpy as np
from search_instances import LARGE, LIMITS, SEEDS, Limits, instance
from search_kept import Kept
from search_peers import EXACT, LIMIT_S, Cbc, Record, cpu_s, timed

from blockwright.search.arrays import Arrays
from blockwright.search.frontier import dropped, frontier, with_cost_as_score
from blockwright.search.pool import pool
from blockwright.search.problem import Problem
from blockwright.search.solve import Feasible, Optimal, prepare, solve

POOL_SIZE, LAYERS_DIFFER, PRESSING_POOL_SEEDS = 16, (2, 8), 2
CBC_POOL_SEEDS: dict[Limits, tuple[int, ...]] = {"pressing": (0,), "typical": (0, 1, 2)}
OUR_POOL_LIMIT_S, POOL_SOLVE_LIMIT_S, POOL_LIMIT_S = 20.0, 120.0, 300.0
"""Ours for each choice; CBC for each, and for all."""
POINTS, SCORE_ERROR = 100, 0.01
"""Of the frontier; and the standard error that each score is taken to have, as a share of it."""
CBC_FRONTIER_SEEDS, EXACT_FRONTIER_SEEDS = 1, 3


def pools(kept: Kept) -> list[Record]:
    """16 choices that differ, by CBC with cuts."""
    rows: list[Record] = []
    seeds: dict[Limits, range] = {"typical": range(SEEDS), "pressing": range(PRESSING_POOL_SEEDS)}
    drawn: list[tuple[Limits, int]] = [(limits, seed) for limits, some in seeds.items() for seed in some]
    for (limits, seed), differ in itertools.product(drawn, LAYERS_DIFFER):
        problem = instance(LARGE, seed, limits)
        key = f"pool {limits} {differ} {seed}"
        rows.append(kept.get(key, "ours", partial(our_pool, problem, differ)))
        if seed in CBC_POOL_SEEDS[limits]:
            rows.append(kept.get(key, "CBC", partial(cbc_pool, prepare(problem).arrays, differ)))
    return rows


def our_pool(problem: Problem, layers_differ: int) -> Record:
    """Ours."""
    after_cpu_s: list[float] = []
    started = cpu_s()

    def on_found(answer: Optimal | Feasible) -> None:
        after_cpu_s.append(cpu_s() - started)

    found, seconds = timed(
        partial(pool, problem, POOL_SIZE, layers_differ, time_limit_s=OUR_POOL_LIMIT_S, on_found=on_found)
    )
    status = "Optimal" if all(isinstance(answer, Optimal) for answer in found) else "not all proven"
    return seconds | {"status": status, "scores": [answer.score for answer in found], "after_cpu_s": after_cpu_s}


def cbc_pool(arrays: Arrays, layers_differ: int) -> Record:
    """CBC, model built once, a cut added after each; stopped where a solve is not proven or time is up."""
    scores: list[float] = []
    after_cpu_s: list[float] = []

    def run() -> str:
        started, cpu_started = time.perf_counter(), cpu_s()
        cbc = Cbc(arrays)
        while len(scores) < POOL_SIZE and (left_s := POOL_LIMIT_S - (time.perf_counter() - started)) > 1:
            given = cbc.solve(min(left_s, POOL_SOLVE_LIMIT_S), EXACT)
            if given.columns_G is None or not given.is_proven:
                return f"stopped at choice {len(scores) + 1}: {given.status}"
            scores.append(float(arrays.scores_C[given.columns_G].sum()))
            after_cpu_s.append(cpu_s() - cpu_started)
            cbc.exclude(given.columns_G, layers_differ)
        return "Optimal" if len(scores) == POOL_SIZE else f"stopped after choice {len(scores)}: time is up"

    status, seconds = timed(run)
    return seconds | {"status": status, "scores": scores, "after_cpu_s": after_cpu_s}


def frontiers(kept: Kept) -> list[Record]:
    """100 limits on memory, the others kept, to within the noise of the scores."""
    rows: list[Record] = []
    for limits, seed in itertools.product(LIMITS, range(SEEDS)):
        problem = instance(LARGE, seed, limits)
        key = f"frontier {limits} {seed}"
        gap = noise(problem)
        rows.append(kept.get(key, "ours", partial(our_frontier, problem, gap)))
        if limits == "typical" and seed < EXACT_FRONTIER_SEEDS:
            rows.append(kept.get(key, "ours, exact", partial(our_frontier, problem, 0.0)))
        if seed < CBC_FRONTIER_SEEDS:
            rows.append(kept.get(key, "CBC", partial(cbc_frontier, problem, gap)))
    return rows


def noise(problem: Problem) -> float:
    """The standard error of the best choice's sum of scores."""
    answer = solve(problem, LIMIT_S)
    assert isinstance(answer, Optimal | Feasible)
    return SCORE_ERROR * float(np.sqrt(sum(choice.score**2 for choice in answer.chosen)))


def our_frontier(problem: Problem, gap: float) -> Record:
    """Ours."""
    ends: list[float] = []
    found, seconds = timed(
        partial(
            frontier,
            problem,
            0,
            POINTS,
            tolerance=gap,
            time_limit_s=LIMIT_S,
            on_point=lambda: ends.append(time.perf_counter()),
        )
    )
    gaps = [point.value - point.bound for point in found]
    precision = 1e-12 * max(abs(point.value) for point in found)
    return seconds | {
        "status": "proven" if max(gaps) <= gap + precision else "not all within the gap",
        "gap": gap,
        "largest_gap": max(gaps),
        "points": len(found),
        "slowest_point_s": max(b - a for a, b in itertools.pairwise(ends)),
        "values": [(point.limit, point.value, point.bound) for point in found],
    }


def cbc_frontier(problem: Problem, gap: float) -> Record:
    """CBC at the same limits to the same gap, model built once."""
    least = solve(dropped(with_cost_as_score(problem, 0), 0), LIMIT_S)
    most = solve(dropped(problem, 0), LIMIT_S)
    assert isinstance(least, Optimal | Feasible) and isinstance(most, Optimal | Feasible)
    costs = {choice.candidates: choice.costs[0] for group in problem.groups for choice in group}
    loosest = sum(costs[choice.candidates] for choice in most.chosen)
    arrays = prepare(problem).arrays
    limits = [replace(problem.limits[0], limit=float(at)) for at in np.linspace(least.score, loosest, POINTS)]
    values: list[tuple[float, float, float]] = []
    proven: list[bool] = []

    def run() -> None:
        cbc = Cbc(arrays)
        for limit in limits:
            cbc.move(0, limit.end)
            given = cbc.solve(LIMIT_S, gap=gap)
            proven.append(given.is_proven)
            score = np.inf if given.columns_G is None else float(arrays.scores_C[given.columns_G].sum())
            values.append((limit.limit, score, float("nan")))

    _, seconds = timed(run)
    return seconds | {"status": f"{sum(proven)} of {POINTS} proven", "gap": gap, "values": values}
