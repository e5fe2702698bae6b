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
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from ortools.math_opt.python import mathopt
from provenance import REPOSITORY, RESULTS, origin, write_results
from search_instances import BIG, LARGE, LIMITS, SEEDS, SMALL, Shape, instance, num_pressing, with_batches
from search_kept import Kept, digest
from search_many import frontiers, pools
from search_peers import (
    EXACT,
    LIMIT_S,
    Given,
    Record,
    by_cbc,
    by_cp_sat,
    by_highs,
    by_mathopt,
    ours,
    timed,
)
from search_text import as_text

from blockwright.hw_profiles.device import this_device
from blockwright.search.problem import Problem
from blockwright.search.solve import Feasible, Optimal, prepare, solve

BIG_PEER_SEEDS, BIG_PEER_LIMIT_S = 1, 60.0
EQUALS, EQUAL_LIMIT_S = 50, 30.0
TABLE_SEEDS, TABLE_LIMIT_S = 4, 60.0
RULE_SEEDS, RULE_LIMIT_S = 3, 20.0


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
    parser.add_argument("--out", type=Path, default=RESULTS)
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
    results = origin("OMP_NUM_THREADS=1 python benchmarks/search.py", device) | {
        "search": kept.search,
        "note": arguments.note,
        "sections": rows,
    }
    results["software"] |= packages
    write_results(results, as_text(results), arguments.out / f"search_{device.name}_{results['date']}")


def warm_up() -> None:
    """Loads what is loaded once."""
    problem = instance(replace(LARGE, num_layers=4), 0, "typical")
    ours(problem, LIMIT_S)
    by_highs(prepare(problem).arrays, 1.0)


if __name__ == "__main__":
    main()
