"""A new GPU from 20 measurements: `OMP_NUM_THREADS=1 python benchmarks/costmodel/transfer.py --data DATA`.

The source is a whole table of the open ones, the target is known by its datasheet and by the operators that
`design_points` names; all the operators that both tables have are predicted, and judged without those measured, blocks
and layers without those that hold a measured one. What is expected of any device, and how much devices differ
(`transfer_prior.py`), is fitted without the target. Beside it, on the same operators: the source's utilisation copied
(zero measurements), that scaled as at the nearest measured operator, a ridge on the logarithm's error over seven
features with 20 random points, both over 20 draws, and aiconfigurator's two constants. Some minutes.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cross_tables import (
    Table,
    block_s,
    blocks,
    ceilings_of,
    checked_folder,
    common,
    data_folder,
    honesty,
    matmuls,
    summary,
    sums,
    two_constants_s,
    vidur,
    write,
)
from datasheet import Kind, table_of
from transfer_prior import expected_without, likeliest_without, source_of

from blockwright.profiler.belief import Expected, believe, explain
from blockwright.profiler.datasheet import EFFICIENCIES, Times, roofline_s, sizes
from blockwright.profiler.transfer import copied_times, design_points, updated

POINTS, DRAWS, RANDOM_DRAWS_OF_OURS = 20, 20, 3
PAIRS = (("h100", "h200"), ("h100", "b200"), ("a100", "h100"), ("h200", "a100"))
BUDGETS = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One transfer: a source, a target and what both were measured to do."""

    setting: str
    what: Kind
    source: str
    target: str
    here: Table
    there: Table
    sums: np.ndarray
    """Where the parts of what is summed stand, one row each; none for attention."""
    sum_of: Callable[[np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    """Judge every transfer with 20 measurements, and the GEMMs with other numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    data_folder(parser)
    folder = checked_folder(parser.parse_args().data)
    rows = []
    for case in cases(folder):
        expected = expected_of(folder, case)
        rows += judged(case, expected)
        print(case.setting, case.what, flush=True)
    print(write("transfer", rows, {"points": POINTS, "draws": DRAWS}))


def cases(folder: Path) -> list[Case]:
    """The pairs in GEMMs and attention, one pair in fp8, and a consumer class target of another project."""
    found = []
    for source, target in PAIRS:
        for what in ("matmul", "prefill", "decode"):
            here, there = common(table_of(folder, source, what), table_of(folder, target, what))
            found.append(case(f"{source} to {target}", what, source, target, here, there))
    here, there = common(matmuls(folder, "h100", "fp8"), matmuls(folder, "b200", "fp8"))
    found.append(case("h100 to b200 fp8", "matmul", "h100", "b200", here, there))
    for source in ("a100", "h100"):
        here, there = common(vidur(folder, source, "matmul"), vidur(folder, "a40", "matmul"))
        layers = sums(folder, "a40", there)
        found.append(
            Case(
                setting=f"{source} to a40",
                what="matmul",
                source=source,
                target="a40",
                here=here,
                there=there,
                sums=layers,
                sum_of=lambda at, times_s: times_s[at].sum(axis=1),
            )
        )
    return found


def case(setting: str, what: Kind, source: str, target: str, here: Table, there: Table) -> Case:
    """A pair of aiconfigurator's tables; GEMMs are summed to blocks."""
    at = blocks(there.operators)
    return Case(
        setting=setting, what=what, source=source, target=target, here=here, there=there, sums=at, sum_of=block_s
    )


def expected_of(folder: Path, of: Case) -> Expected:
    """What GPUs other than the target do, and how they differ."""
    efficiency = expected_without(folder, of.target, of.what)
    return Expected(efficiencies={**EFFICIENCIES, of.what: efficiency}, prior=likeliest_without(folder, of.target))


def judged(of: Case, expected: Expected) -> list[dict]:
    """Ours and its rivals on one case."""
    operators, target = of.there.operators, ceilings_of(of.target)
    source = source_of(of.source, of.here)
    at = {operator: i for i, operator in enumerate(operators)}
    copied = copied_times(source, target, operators)
    designed = design_points(operators, max(POINTS, *BUDGETS), source, target, expected)

    # As `transfer` does, but explained once.
    belief = believe(explain(operators, source, target, expected.efficiencies), expected.prior)

    def ours(points: list) -> Times:
        measured = np.array([at[point] for point in points])
        return updated(belief.take(measured), belief, of.there.times_s[measured])

    draws = [np.random.default_rng(seed).choice(len(operators), POINTS, replace=False) for seed in range(DRAWS)]
    methods = {
        f"{POINTS} designed": [(ours(designed[:POINTS]), [at[point] for point in designed[:POINTS]])],
        f"{POINTS} random": [(ours([operators[i] for i in draw]), draw) for draw in draws[:RANDOM_DRAWS_OF_OURS]],
        "ridge, random": [(ridge(copied, of, draw), draw) for draw in draws],
        "nearest, random": [(nearest(copied, of, draw), draw) for draw in draws],
        "utilisation copied": [(copied, [])],
        "two constants": [(two_constants_s(operators, target), [])],
        "roofline": [(roofline_s(operators, target), [])],
    }
    if of.what == "matmul":
        methods |= {f"{n} designed": [(ours(designed[:n]), [at[p] for p in designed[:n]])] for n in BUDGETS}
    return [row for method, tries in methods.items() for row in scored(of, method, tries)]


def scored(of: Case, method: str, tries: list) -> list[dict]:
    """Operators that were not measured, and sums of such alone; the mean over the tries."""
    single, summed = [], []
    for predicted, measured in tries:
        left = np.setdiff1d(np.arange(len(of.there.operators)), measured)
        times_s = predicted.time_s if isinstance(predicted, Times) else predicted
        row = summary(times_s[left], of.there.times_s[left])
        if isinstance(predicted, Times):
            kept = Times(
                time_s=times_s[left], low_s=predicted.low_s[left], high_s=predicted.high_s[left], origin="transferred"
            )
            row |= honesty(kept, of.there.times_s[left])
        single.append(row)
        if len(of.sums):
            sums_left = of.sums[~np.isin(of.sums, measured).any(axis=1)]
            summed.append(summary(of.sum_of(sums_left, times_s), of.sum_of(sums_left, of.there.times_s)))
    found = {of.what: single, "sum": summed}
    return [
        {"setting": of.setting, "method": method, "what": what} | {k: float(np.mean([r[k] for r in rs])) for k in rs[0]}
        for what, rs in found.items()
        if rs
    ]


def ridge(copied: np.ndarray, of: Case, draw: np.ndarray) -> np.ndarray:
    """The baseline that we had: a linear correction of the logarithm."""
    roof = roofline_s(of.there.operators, ceilings_of(of.target))
    flop = np.array([operator.flop for operator in of.there.operators], dtype=float)
    extents = np.log([sizes(operator)[:3] for operator in of.there.operators])
    columns = np.column_stack([extents, np.log(flop / roof), np.log(roof / copied), np.log(roof)])
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    columns = np.column_stack([np.ones(len(columns)), columns])
    chosen, wrong = columns[draw], np.log(of.there.times_s[draw] / copied[draw])
    return copied * np.exp(columns @ np.linalg.solve(chosen.T @ chosen + np.eye(7), chosen.T @ wrong))


def nearest(copied: np.ndarray, of: Case, draw: np.ndarray) -> np.ndarray:
    """The error of the measured operator that is nearest in the logarithms of sizes."""
    extents = np.log([sizes(operator)[:3] for operator in of.there.operators])
    apart = ((extents[:, None] - extents[draw][None]) ** 2).sum(axis=2)
    return copied * (of.there.times_s[draw] / copied[draw])[apart.argmin(axis=1)]


if __name__ == "__main__":
    main()
