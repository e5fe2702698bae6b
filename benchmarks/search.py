"""How fast the search is beside general solvers: `OMP_NUM_THREADS=1 python benchmarks/search.py`.

Needs `pip install -e '.[bench]'` and about an hour, most of it the peers'. The instances are those of
`search_instances.py`. Sections:

single      one solve at 80 × 54 with memory and two times, beside CBC by PuLP and HiGHS by SciPy
pools       16 choices, each at least 2, or 8, layers from all others, beside CBC with cuts
frontiers   100 limits on memory, each proven to within the noise of the scores, beside CBC
big         126 × 400 with eight budgets: eight loads on four devices
equal       50 instances whose optimum CBC finds too
table       which solver: all that OR-Tools and SciPy bring, and ours
rules       the batch as a decision; few shapes, and layers removed in one run

On the same instance ours goes first, then the peers, instance by instance, unless kept from before. Ours starts from a
`Problem` and peers from arrays; what either then builds counts. CPU seconds are those of this process and of CBC's,
which PuLP starts; where others disturb the machine, they are what to compare. Time limits are on the wall clock.

What is measured is kept in a folder, ours by the digest of the solver, so that a killed run goes on. `--only` runs some
sections; all together write benchmarks/results/search_<device>_<date>.json and .md.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ortools.math_opt.python import mathopt
from search_instances import BIG, LARGE, SMALL, Limits, Shape, instance, num_pressing, with_batches
from search_peers import (
    EXACT,
    Cbc,
    Given,
    Record,
    by_cbc,
    by_cp_sat,
    by_highs,
    by_mathopt,
    cpu_s,
    judged,
    ours,
    timed,
)
from search_text import as_text

from blockwright.hw_profiles.device import installed_software, this_device
from blockwright.search.arrays import Arrays
from blockwright.search.frontier import dropped, frontier, with_cost_as_score
from blockwright.search.pool import pool
from blockwright.search.problem import Problem
from blockwright.search.solve import Feasible, Optimal, prepare, solve

REPOSITORY = Path(__file__).parents[1]
LIMITS: tuple[Limits, ...] = ("pressing", "typical")
SEEDS = 9
POOL_SIZE, LAYERS_DIFFER, PRESSING_POOL_SEEDS = 16, (2, 8), 2
CBC_POOL_SEEDS: dict[Limits, tuple[int, ...]] = {"pressing": (0,), "typical": (0, 1, 2)}
OUR_POOL_LIMIT_S, POOL_SOLVE_LIMIT_S, POOL_LIMIT_S = 20.0, 120.0, 300.0
"""Ours for each choice; CBC for each, and for all."""
POINTS, SCORE_ERROR = 100, 0.01
"""Of the frontier; and the standard error that each score is taken to have, as a share of it."""
CBC_FRONTIER_SEEDS, EXACT_FRONTIER_SEEDS = 1, 3
BIG_PEER_SEEDS, BIG_PEER_LIMIT_S = 1, 60.0
EQUALS, EQUAL_LIMIT_S = 50, 30.0
TABLE_SEEDS, TABLE_LIMIT_S = 4, 60.0
RULE_SEEDS, RULE_LIMIT_S = 3, 20.0
LIMIT_S = 60.0
SOLVER = ("arrays", "core", "decisions", "enumerate", "frontier", "general", "pool", "problem", "relaxation", "solve")
"""Files of search/ that matter here."""
OWN = ("ours", "CP-SAT")
"""Solvers that are called through them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was measured before: ours of the same search, and peers, of the same instances."""

    folder: Path
    search: str
    """Digest of the solver's files."""

    def get(self, key: str, solver: str, make: Callable[[], Record]) -> Record:
        """A record, made unless it is there."""
        folder = self.folder / (self.search if solver.startswith(OWN) else "peers")
        path = folder / (key.replace(" ", "-").replace("×", "x") + f"_{solver.replace(' ', '-')}.json")
        if not path.exists():
            load = os.getloadavg()[0]
            record = {"case": key, "solver": solver, "load_average": load, "at": datetime.now(UTC).isoformat()} | make()
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record))
            shown = {name: record.get(name) for name in ("wall_s", "cpu_s", "status", "score")}
            print(f"{key}, {solver}: {shown}", file=sys.stderr, flush=True)
        return json.loads(path.read_text())

    def solve(self, key: str, solver: str, arrays: Arrays, run: Callable[[], Given]) -> Record:
        """One solve, timed."""

        def make() -> Record:
            given, seconds = timed(run)
            return seconds | judged(arrays, given)

        return self.get(key, solver, make)


def single(kept: Kept) -> list[Record]:
    """One solve at 80 × 54."""
    rows: list[Record] = []
    for limits, seed in itertools.product(LIMITS, range(SEEDS)):
        problem = instance(LARGE, seed, limits)
        arrays, key = prepare(problem).arrays, f"single {limits} {seed}"
        rows.append(kept.solve(key, "ours", arrays, partial(ours, problem, LIMIT_S)))
        rows.append(kept.solve(key, "CBC", arrays, partial(by_cbc, arrays, LIMIT_S)))
        rows.append(kept.solve(key, "HiGHS", arrays, partial(by_highs, arrays, LIMIT_S)))
    return rows


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


def big(kept: Kept) -> list[Record]:
    """126 × 400 with eight budgets on four devices."""
    rows: list[Record] = []
    for limits, seed in itertools.product(LIMITS, range(SEEDS)):
        problem = instance(BIG, seed, limits)
        arrays, key = prepare(problem).arrays, f"big {limits} {seed}"
        rows.append(
            kept.solve(key, "ours", arrays, partial(ours, problem, LIMIT_S)) | {"pressing": num_pressing(arrays)}
        )
        if limits == "pressing" and seed < BIG_PEER_SEEDS:
            rows.append(kept.solve(key, "HiGHS", arrays, partial(by_highs, arrays, BIG_PEER_LIMIT_S)))
            rows.append(kept.solve(key, "CBC", arrays, partial(by_cbc, arrays, BIG_PEER_LIMIT_S)))
    return rows


def equal(kept: Kept) -> list[Record]:
    """50 instances from 40 × 30 to 80 × 54 with one to three limits."""
    rows: list[Record] = []
    for index in range(EQUALS):
        num_mixers, num_ffns = ((5, 6), (6, 7), (6, 9))[index % 3]
        shape = Shape(
            num_layers=(40, 50, 64, 80)[index % 4],
            num_mixers=num_mixers,
            num_ffns=num_ffns,
            loads=((), (0,), (0, 1))[index // 2 % 3],
        )
        problem = instance(shape, 1000 + index, "pressing" if index % 2 else "typical")
        arrays, key = prepare(problem).arrays, f"equal {index} {shape.name} {len(problem.limits)}"
        rows.append(kept.solve(key, "ours", arrays, partial(ours, problem, LIMIT_S)))
        rows.append(kept.solve(key, "CBC", arrays, partial(by_cbc, arrays, EQUAL_LIMIT_S, EXACT)))
    return rows


def table(kept: Kept) -> list[Record]:
    """All solvers on some of the single instances."""
    rows: list[Record] = []
    for seed in range(TABLE_SEEDS):
        problem = instance(LARGE, seed, "pressing")
        arrays, key = prepare(problem).arrays, f"table {seed}"
        solvers: dict[str, Callable[[], Given]] = {
            "ours": partial(ours, problem, LIMIT_S),
            "CP-SAT": partial(by_cp_sat, arrays, TABLE_LIMIT_S),
            "MathOpt HiGHS": partial(by_mathopt, mathopt.SolverType.HIGHS, arrays, TABLE_LIMIT_S),
            "MathOpt GSCIP": partial(by_mathopt, mathopt.SolverType.GSCIP, arrays, TABLE_LIMIT_S),
            "HiGHS": partial(by_highs, arrays, TABLE_LIMIT_S),
            "CBC": partial(by_cbc, arrays, TABLE_LIMIT_S),
        }
        rows += [kept.solve(key, name, arrays, run) for name, run in solvers.items()]
    return rows


def rules(kept: Kept) -> list[Record]:
    """The batch as a decision, and rules on blocks; no peers."""
    rows: list[Record] = []
    for seed in range(SEEDS):
        problem = with_batches(seed)
        rows.append(kept.get(f"batches of two loads {seed}", "ours", partial(answered, problem, LIMIT_S)))
    kinds: dict[str, Record] = {
        "one shape": {"most_shapes": 1},
        "three shapes": {"most_shapes": 3},
        "contiguous": {"is_contiguous": True},
    }
    for (name, rule), shape, seed in itertools.product(kinds.items(), (SMALL, LARGE), range(RULE_SEEDS)):
        problem = replace(instance(shape, seed, "typical"), **rule)
        rows.append(kept.get(f"{name} {shape.name} {seed}", "ours", partial(answered, problem, RULE_LIMIT_S)))
    return rows


def answered(problem: Problem, time_limit_s: float) -> Record:
    """One solve, with its gap and decisions."""
    answer, seconds = timed(partial(solve, problem, time_limit_s))
    record = seconds | {"status": type(answer).__name__, "score": None}
    if isinstance(answer, Optimal | Feasible):
        record |= {"score": answer.score, "gap": answer.score - answer.bound, "decided": answer.decided}
    return record


SECTIONS: dict[str, Callable[[Kept], list[Record]]] = {
    "single": single,
    "pools": pools,
    "frontiers": frontiers,
    "big": big,
    "equal": equal,
    "table": table,
    "rules": rules,
}


def main() -> None:
    """Runs the sections and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "benchmark-search", help="to go on from")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--only", choices=SECTIONS, nargs="*", help="these sections, and no results")
    parser.add_argument("--note", default="", help="what a reader of the results should know of this run")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("set OMP_NUM_THREADS=1: all solvers get one thread")
    kept = Kept(folder=arguments.folder, search=digest())
    warm_up()
    rows = {name: SECTIONS[name](kept) for name in arguments.only or SECTIONS}
    if arguments.only:
        return
    device = this_device()
    packages = {package: version(package) for package in ("pulp", "ortools", "scipy", "numpy")}
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "OMP_NUM_THREADS=1 python benchmarks/search.py",
        "commit": commit(),
        "search": kept.search,
        "device": asdict(device),
        "software": installed_software() | packages | {"system": platform.platform()},
        "note": arguments.note,
        "sections": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"search_{device.name}_{results['date']}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(as_text(results))
    print(stem.with_suffix(".md").read_text())


def commit() -> str:
    """The commit that is measured, marked where files differ from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def digest() -> str:
    """Of the solver, whose timings are kept under it."""
    files = [REPOSITORY / "search" / f"{name}.py" for name in SOLVER]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def warm_up() -> None:
    """Loads what is loaded once."""
    problem = instance(replace(LARGE, num_layers=4), 0, "typical")
    ours(problem, LIMIT_S)
    by_highs(prepare(problem).arrays, 1.0)


if __name__ == "__main__":
    main()
