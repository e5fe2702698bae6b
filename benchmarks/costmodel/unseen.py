"""How well times of operators that were not timed are predicted, on one device at a time.

`OMP_NUM_THREADS=1 python benchmarks/costmodel/unseen.py --data FOLDER`, about half an hour; `--tests advised` does in
less than half of that all but the designs of measurements that stand there for comparison. The folder holds the open
tables (`hw/aiconfigurator`, `hw/vidur`) and defaults to BLOCKWRIGHT_DATA or `shared/data` beside the checkout. The
forest of scikit-learn needs `pip install -e '.[bench]'`.

`folds.py` says what is measured and what is asked for, `baselines.py` what ours stands beside. Settings were chosen on
the H100's tables only. Errors are relative to the measured time; the interval is ours, of 90 %, and the width is its
median over the prediction. Of widths of bf16, whose draw of pairs decides much, there are five splits; figures are of
all their rows together, and the means of each stand beside. Writes benchmarks/results/costmodel-unseen_<date>.json.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import folds
import numpy as np
from baselines import BASELINES, Predict, other_sites
from provenance import REPOSITORY, RESULTS, commit
from tables import SYSTEMS, VIDUR, Table, attention, products, vidur

from blockwright.hw_profiles.device import installed_software, this_device
from blockwright.profiler.utilisation import fit_times

SEEDS = (0, 1, 2, 3, 4)
ONE_SEED = (0,)
"""For what is asked of thousands of rows in one fold already."""
DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or REPOSITORY.parent / "shared" / "data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """What is asked of a table, by seed."""

    table: Table
    name: str
    fold: partial[folds.Fold]
    seeds: tuple[int, ...] = ONE_SEED
    is_advised: bool = True
    """Whether measuring like that is what we advise; else it is there for comparison."""


def main() -> None:
    """Runs all tests on all tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="open tables")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--devices", nargs="+", default=sorted({*SYSTEMS, *VIDUR}))
    parser.add_argument("--splits", type=int, default=len(SEEDS), help="of the widths")
    parser.add_argument("--name", default="costmodel-unseen", help="of the results' file")
    parser.add_argument("--only", default="", help="tests with these words in their device, table and name")
    parser.add_argument("--tests", choices=["advised", "all"], default="all", help="all by default")
    arguments = parser.parse_args()
    if not (arguments.data / "hw" / "aiconfigurator").is_dir():
        parser.error("--data or BLOCKWRIGHT_DATA: a folder that holds hw/aiconfigurator and hw/vidur")
    state, rows = commit(), []
    for found in results(arguments):
        rows += found
        print("\n".join(as_line(row) for row in found), flush=True)
        write(arguments, state, rows)


def results(arguments: argparse.Namespace) -> Iterator[list[dict[str, object]]]:
    """The rows of each test, what we advise to measure first."""
    every = [
        test
        for test in tests(arguments.data, arguments.devices, SEEDS[: arguments.splits])
        if arguments.only in f"{test.table.device} {test.table.name} {test.name}"
    ]
    for test in every:
        if test.is_advised:
            yield measured(test)
    if arguments.tests == "all":
        for device in (each for each in arguments.devices if each in SYSTEMS and not arguments.only):
            yield sites(products(arguments.data, device, "bfloat16"))
        for test in every:
            if not test.is_advised:
                yield measured(test)


def write(arguments: argparse.Namespace, state: str, rows: list[dict[str, object]]) -> None:
    """Writes what is there so far: a run that ends early leaves the tests that it came to."""
    day = datetime.now(UTC).date().isoformat()
    record = {
        "date": day,
        "command": " ".join(
            ["python benchmarks/costmodel/unseen.py", "--devices", *arguments.devices, "--tests", arguments.tests]
            + (["--only", repr(arguments.only)] if arguments.only else [])
        ),
        "cpu_s": round(time.process_time()),
        "commit": state,
        "device": asdict(this_device()),
        "software": installed_software() | {"system": platform.platform()},
        "seeds": SEEDS[: arguments.splits],
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}_{day}.json").write_text(json.dumps(record, indent=1) + "\n")


def tests(data: Path, devices: list[str], seeds: tuple[int, ...]) -> Iterator[Test]:
    """Each table with what is asked of it."""
    known = [device for device in devices if device in SYSTEMS]
    dtypes = [
        (device, dtype) for dtype in ("bfloat16", "fp8") for device in known if (device, dtype) != ("A100", "fp8")
    ]
    for device, dtype in dtypes:
        table = products(data, device, dtype)
        splits = seeds if dtype == "bfloat16" else ONE_SEED
        yield Test(table=table, name="widths", seeds=splits, fold=partial(folds.widths, table))
        yield Test(table=table, name="rows, rotated", fold=partial(folds.rotated, table))
        for name, is_half in (("half dense", True), ("none dense", False)):
            fold = partial(folds.rows, table, is_half_dense=is_half)
            yield Test(table=table, name=f"rows, {name}", fold=fold, is_advised=False)
    for device in known:
        for phase in ("decode", "prefill"):
            table = attention(data, device, phase)
            yield Test(table=table, name="scattered", fold=partial(folds.attention, table, is_lattice=False))
            lattice = partial(folds.attention, table, is_lattice=True)
            yield Test(table=table, name="lattice", fold=lattice, is_advised=False)
    for device in sorted(VIDUR.keys() & set(devices)):
        table = vidur(data, device)
        yield Test(table=table, name="rows, rotated", fold=partial(folds.rotated, table))
        same_ten = partial(folds.rows, table, is_half_dense=False)
        yield Test(table=table, name="rows, none dense", fold=same_ten)


def measured(test: Test) -> list[dict[str, object]]:
    """Ours and the baselines on the same folds, errors of all seeds together and their means apart."""
    errors: dict[tuple[str, str], list[np.ndarray]] = {}
    covers: dict[str, list[np.ndarray]] = {}
    widths: dict[str, list[np.ndarray]] = {}
    num_learnt, fit_s = 0, []
    for seed in test.seeds:
        fold = test.fold(seed)
        table, num_learnt = test.table.seen(fold.learn), len(fold.learn)
        started = time.process_time()
        model = fit_times(table.ceilings, table.timed(fold.learn))
        fit_s.append(time.process_time() - started)
        ours = model.costs(table.operators)
        ways = {"ours": ours.values} | {name: baseline(way, table, fold) for name, way in ways_of(test).items()}
        cases = {"operators": fold.predict[:, None]} | {f"blocks, {case}": each for case, each in fold.blocks.items()}
        for case, index in cases.items():
            weights = np.array([2, 2, 1]) if index.shape[1] == 3 else np.ones(1)
            truth = table.seconds[index] @ weights
            for name, values in ways.items():
                errors.setdefault((case, name), []).append(values[index] @ weights / truth - 1)
            low, value, high = (each[index] @ weights for each in (ours.lows, ours.values, ours.highs))
            covers.setdefault(case, []).append((low <= truth) & (truth <= high))
            widths.setdefault(case, []).append((high - low) / value)
    rows: list[dict[str, object]] = []
    for (case, name), found in errors.items():
        row: dict[str, object] = {"device": test.table.device, "table": test.table.name, "test": test.name}
        row |= {"case": case, "way": name, "learnt": num_learnt, "refused": test.table.num_refused}
        row |= summary(np.concatenate(found)) | {"means": [float(np.abs(each).mean()) for each in found]}
        if name == "ours":
            row |= {"coverage": float(np.concatenate(covers[case]).mean())}
            row |= {"interval_width": float(np.median(np.concatenate(widths[case])))}
            row |= {"fit_cpu_s": float(np.median(fit_s))}
        rows.append(row)
    return rows


def ways_of(test: Test) -> dict[str, Predict]:
    """The baselines; of widths no shape has a load to draw a line through, and linear is the nearest."""
    absent = {"linear"} if test.name == "widths" else set()
    if not find_spec("sklearn"):
        absent.add("random forest")
    return {name: way for name, way in BASELINES.items() if name not in absent}


def baseline(way: Predict, table: Table, fold: folds.Fold) -> np.ndarray:
    """Seconds of all rows: what is learnt is known."""
    values = table.seconds.copy()
    values[fold.predict] = way(table, fold.learn, fold.predict)
    return values


def sites(table: Table) -> list[dict[str, object]]:
    """The reference's test, see `folds`."""
    ours = np.zeros(len(table.seconds))
    for fold in folds.fifths_of_shapes(table):
        model = fit_times(table.seen(fold.learn).ceilings, table.timed(fold.learn))
        ours[fold.predict] = model.costs([table.operators[row] for row in fold.predict]).values
    ways = {"ours": ours, "inverse distance": other_sites(table)}
    rows: list[dict[str, object]] = []
    for case, index in (("operators", np.arange(len(table.seconds))[:, None]), ("blocks", folds.blocks_of(table))):
        weights = np.array([2, 2, 1]) if index.shape[1] == 3 else np.ones(1)
        for name, values in ways.items():
            errors = values[index] @ weights / (table.seconds[index] @ weights) - 1
            row: dict[str, object] = {"device": table.device, "table": table.name, "test": "sites"}
            row |= {"case": case, "way": name}
            rows.append(row | {"refused": table.num_refused} | summary(errors[~np.isnan(errors)]))
    return rows


def summary(errors: np.ndarray) -> dict[str, float]:
    """Of relative errors, as shares of one."""
    sizes = np.abs(errors)
    return {
        "n": len(errors),
        "mean": float(sizes.mean()),
        "median": float(np.median(sizes)),
        "p90": float(np.quantile(sizes, 0.9)),
        "within_10": float(np.mean(sizes <= 0.1)),
        "bias": float(errors.mean()),
    }


def as_line(row: dict[str, object]) -> str:
    """A row of the printed table, in per cent."""
    names = " | ".join(str(row[key]) for key in ("device", "table", "test", "case", "way", "n"))
    keys = ("mean", "median", "p90", "within_10", "bias", "coverage", "interval_width")
    return f"| {names} | " + " | ".join(f"{100 * float(str(row[key])):.1f}" for key in keys if key in row) + " |"


if __name__ == "__main__":
    main()
