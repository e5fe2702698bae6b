"""What a datasheet alone says of times: `OMP_NUM_THREADS=1 python benchmarks/costmodel/datasheet.py --data DATA`.

One GPU at a time is left out: its times are predicted with the geometric mean of the others' efficiencies, its interval
is the widest 90 % that any of the others needed when it was left out among them. Beside it, the roofline and
aiconfigurator's two constants on the same operators. Vidur's A40 is predicted with the constants and fitted to nothing.
It ends with the constants that stand in `profiler/datasheet.py`. A minute.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from cross_tables import (
    GPUS,
    Table,
    attention,
    block_s,
    blocks,
    ceilings_of,
    checked_folder,
    data_folder,
    honesty,
    matmuls,
    summary,
    sums,
    two_constants_s,
    vidur,
    write,
)

from blockwright.profiler.datasheet import (
    KINDS,
    Efficiency,
    Kind,
    fit_efficiency,
    mean_efficiency,
    modelled_times,
    roofline_s,
)

SAMPLE = 700
"""Operators of a table that an efficiency is fitted to."""

START = Efficiency(
    launches=2.0, bandwidth=0.7, rate=0.8, small_tile=0.2, start_us=0.5, overlap=3.0, reach=1.5, join_us=1.5
)
"""What every fit begins near: no GPU of the tables, so that none is seen before it is its turn;
attention's small tiles count from half the rate at 64 rows."""

Fitted = dict[str, Efficiency]
"""By GPU."""


def main() -> None:
    """Predict each GPU from the others, then the A40."""
    parser = argparse.ArgumentParser(description=__doc__)
    data_folder(parser)
    folder = checked_folder(parser.parse_args().data)
    rows, constants, widths = [], {}, {}
    for kind in KINDS:
        tables = {gpu: table_of(folder, gpu, kind) for gpu in (GPUS if kind != "elementwise" else ("a100", "h100"))}
        fitted = {gpu: fitted_to(table, gpu, kind) for gpu, table in tables.items()}
        for gpu, table in tables.items():
            rows += judged(kind, gpu, table, without(gpu, fitted), inner_width(kind, gpu, tables, fitted))
        constants[kind] = mean_efficiency(list(fitted.values()))
        widths[kind] = max(needed(kind, gpu, table, without(gpu, fitted)) for gpu, table in tables.items())
    for kind in ("matmul", "elementwise"):
        table = vidur(folder, "a40", kind)
        rows += judged(kind, "a40", table, constants[kind], widths[kind])
        if kind == "matmul":
            rows += layers(folder, table, constants[kind])
    extra = {"efficiencies": {kind: asdict(value) for kind, value in constants.items()}, "half_widths": widths}
    print(write("datasheet", rows, extra))
    for kind, value in constants.items():
        print(kind, {name: float(f"{x:.3g}") for name, x in asdict(value).items()}, f"half width {widths[kind]:.2f}")


def table_of(folder: Path, gpu: str, kind: Kind) -> Table:
    """All of one kind that was measured on a GPU."""
    if kind == "matmul":
        return matmuls(folder, gpu)
    return vidur(folder, gpu, kind) if kind == "elementwise" else attention(folder, gpu, kind)


def fitted_to(table: Table, gpu: str, kind: Kind) -> Efficiency:
    """A GPU's own efficiency, from a random part of its table."""
    some = table.take(np.random.default_rng(0).permutation(len(table.times_s))[:SAMPLE])
    start = replace(START, small_tile=1.0) if kind in ("prefill", "decode") else START
    return fit_efficiency(some.operators, some.times_s, ceilings_of(gpu), start)


def without(gpu: str, fitted: Fitted) -> Efficiency:
    """The mean of the others."""
    return mean_efficiency([efficiency for name, efficiency in fitted.items() if name != gpu])


def needed(kind: Kind, gpu: str, table: Table, efficiency: Efficiency) -> float:
    """The half-width that holds 90 % of a GPU's operators."""
    times = modelled_times(table.operators, ceilings_of(gpu), {kind: efficiency})
    return float(np.quantile(np.abs(np.log(times.time_s / table.times_s)), 0.9))


def inner_width(kind: Kind, left_out: str, tables: dict[str, Table], fitted: Fitted) -> float:
    """The widest of what the others need, each predicted from those that remain."""
    others = {gpu: efficiency for gpu, efficiency in fitted.items() if gpu != left_out}
    if len(others) == 1:  # of two GPUs, the other's own fit is all there is
        return max(needed(kind, gpu, tables[gpu], own) for gpu, own in others.items())
    return max(needed(kind, gpu, tables[gpu], without(gpu, others)) for gpu in others)


def judged(kind: Kind, gpu: str, table: Table, efficiency: Efficiency, width: float) -> list[dict]:
    """Ours, the roofline and two constants on one GPU; of products, sums of blocks as well."""
    ceilings = ceilings_of(gpu)
    ours = modelled_times(table.operators, ceilings, {kind: efficiency}, {kind: width})
    at = blocks(table.operators) if kind == "matmul" and gpu in GPUS else None
    rows = []
    for method, times_s in (
        ("datasheet", ours.time_s),
        ("two constants", two_constants_s(table.operators, ceilings)),
        ("roofline", roofline_s(table.operators, ceilings)),
    ):
        row = {"setting": f"{gpu} left out", "method": method, "what": kind, **summary(times_s, table.times_s)}
        rows.append(row | (honesty(ours, table.times_s) if method == "datasheet" else {}))
        if at is not None:
            in_blocks = summary(block_s(at, times_s), block_s(at, table.times_s))
            rows.append({"setting": f"{gpu} left out", "method": method, "what": "block", **in_blocks})
    return rows


def layers(folder: Path, table: Table, efficiency: Efficiency) -> list[dict]:
    """Sums of a layer's four products on the A40."""
    at, ceilings = sums(folder, "a40", table), ceilings_of("a40")
    ours = modelled_times(table.operators, ceilings, {"matmul": efficiency}).time_s
    named = {"datasheet": ours, "two constants": two_constants_s(table.operators, ceilings)}
    measured_s = table.times_s[at].sum(axis=1)
    return [
        {"setting": "a40 left out", "method": name, "what": "layer", **summary(times_s[at].sum(axis=1), measured_s)}
        for name, times_s in named.items()
    ]


if __name__ == "__main__":
    main()
