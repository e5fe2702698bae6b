"""The open tables of GPUs as operators and times: aiconfigurator's (vLLM kernels) and Vidur's, from a folder `--data`.

The folder holds `hw/aiconfigurator` and `hw/vidur` as their projects ship them. Peaks are the projects' own figures,
numbers of SMs and caches NVIDIA's; one launch counts as 3 µs, aiconfigurator's constant for all of them.
Traps: A100 was measured with vLLM 0.14, the others with 0.24; fp8 and bf16 run different kernels; times are in ms.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from blockwright.cost import Origin
from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.profiler.datasheet import Times, roofline_s
from blockwright.profiler.operators import Attend, Elementwise, Matmul, Operator

GPUS = ("a100", "h100", "h200", "b200")
LEAST_WIDTH = 1024
"""Of a matrix's sides: what blocks of language models have."""

_SHEETS = {  # bytes/s, bf16 and fp8 products/s, SMs, bytes of last-level cache
    "a100": (2.039e12, 312e12, None, 108, 40e6),
    "h100": (3.35e12, 989e12, 1978e12, 132, 50e6),
    "h200": (4.8e12, 989e12, 1978e12, 132, 50e6),
    "b200": (7.7e12, 2250e12, 4500e12, 148, 126e6),
    "a40": (0.696e12, 149.7e12, None, 84, 6e6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Operators and how long each took."""

    operators: tuple[Operator, ...]
    times_s: np.ndarray

    def take(self, at: np.ndarray) -> "Table":
        """Some of the rows."""
        return Table(operators=tuple(self.operators[i] for i in at), times_s=self.times_s[at])


def data_folder(parser: argparse.ArgumentParser) -> None:
    """Add `--data`."""
    parser.add_argument("--data", default=os.environ.get("BLOCKWRIGHT_DATA"), help="folder of open tables")


def checked_folder(given: str | None) -> Path:
    """The folder, if it holds the tables."""
    if given is None or not (Path(given) / "hw" / "aiconfigurator").is_dir():
        raise InputError(
            "--data",
            got=given,
            expected="a folder that holds hw/aiconfigurator and hw/vidur",
            remedy="Clone ai-dynamo/aiconfigurator and microsoft/vidur into it, or set BLOCKWRIGHT_DATA.",
        )
    return Path(given)


def ceilings_of(gpu: str) -> Ceilings:
    """What the datasheet says."""
    bytes_per_s, bf16, fp8, units, cache_bytes = _SHEETS[gpu]
    rates = {"bf16": bf16, "fp16": bf16} | ({} if fp8 is None else {"fp8": fp8})
    return Ceilings(
        read_bytes_per_s=_figure(bytes_per_s),
        flop_per_s={name: _figure(rate) for name, rate in rates.items()},
        launch_s=_figure(3e-6),
        num_units=units,
        cache_bytes=int(cache_bytes),
    )


def _figure(value: float, origin: Origin = "modelled") -> Figure:
    return Figure(value=value, low=0.7 * value, high=value, origin=origin, source="datasheet")


@cache
def matmuls(folder: Path, gpu: str, weights: str = "bf16") -> Table:
    """Products of matrices whose sides are `LEAST_WIDTH` or more."""
    name, size = ("bfloat16", 2) if weights == "bf16" else (weights, 1)
    rows = _read(folder, gpu, "gemm/vllm/*/gemm_perf.parquet")
    rows = rows[(rows.gemm_dtype == name) & (rows[["n", "k"]].min(axis=1) >= LEAST_WIDTH)]
    times = rows.groupby(["m", "n", "k"]).latency.median()
    operators = [_matmul(m, n, k, weights, size) for m, n, k in times.index.tolist()]
    return Table(operators=tuple(operators), times_s=1e-3 * times.to_numpy())


def _matmul(rows: int, outputs: int, inputs: int, weights: str, size: int) -> Matmul:
    return Matmul(
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        weights=weights,
        weight_bytes=size * inputs * outputs,
        bytes_per_value=2,
    )


@cache
def attention(folder: Path, gpu: str, phase: str) -> Table:
    """Full attention in bf16 with heads of 128, of a ``prefill`` or a ``decode``."""
    name = "context" if phase == "prefill" else "generation"
    rows = _read(folder, gpu, f"attention/vllm/*/{name}_attention_perf.parquet")
    rows = rows[(rows.attn_dtype == "bfloat16") & (rows.kv_cache_dtype == "bfloat16") & (rows.head_dim == 128)]
    if "window_size" in rows:
        rows = rows.query("window_size == 0")
    if phase == "prefill":
        rows = rows.query("isl > 1")
    keys = ["batch_size", "isl", "step", "num_heads", "num_key_value_heads"]
    times = rows.groupby(keys).latency.median()
    operators = [
        Attend(
            batch=batch,
            new_tokens=length if phase == "prefill" else 1,
            context=length if phase == "prefill" else length + step,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads or num_heads,
            head_dim=128,
            bytes_per_value=2,
            kv_bytes_per_value=2,
        )
        for batch, length, step, num_heads, num_kv_heads in times.index.tolist()
    ]
    return Table(operators=tuple(operators), times_s=1e-3 * times.to_numpy())


def vidur(folder: Path, gpu: str, part: str) -> Table:
    """Vidur's ``matmul`` or ``elementwise`` operators on one of its GPUs, medians of at least 2 µs (it counts in 1)."""
    files = sorted((folder / "hw" / "vidur" / "compute" / gpu).glob("*/*/mlp.csv"))
    times: dict[Operator, list[float]] = {}
    for file in files:
        for row in pd.read_csv(file).to_dict("records"):
            found = _vidur_matmuls(row) if part == "matmul" else _vidur_moves(row)
            for name, operator in found.items():
                times.setdefault(operator, []).append(1e-3 * row[f"time_stats.{name}.median"])
    middle = {operator: float(np.median(seen)) for operator, seen in times.items()}
    kept = {operator: time_s for operator, time_s in middle.items() if time_s >= 2e-6}
    return Table(operators=tuple(kept), times_s=np.array(list(kept.values())))


def _vidur_matmuls(row: dict) -> dict[str, Operator]:
    """Query, key and value in one product, gate and up in one, as Vidur ran them; ranks share heads and widths."""
    rows, hidden, ranks = row["num_tokens"], row["n_embd"], row["num_tensor_parallel_workers"]
    head = hidden // row["n_head"]
    heads, kv_heads = row["n_head"] // ranks, max(1, row["n_kv_head"] // ranks)
    inner, gates = row["n_expanded_embd"] // ranks, 2 if row["use_gated_mlp"] else 1
    return {
        "attn_pre_proj": _matmul(rows, head * (heads + 2 * kv_heads), hidden, "fp16", 2),
        "attn_post_proj": _matmul(rows, hidden, head * heads, "fp16", 2),
        "mlp_up_proj": _matmul(rows, gates * inner, hidden, "fp16", 2),
        "mlp_down_proj": _matmul(rows, hidden, inner, "fp16", 2),
    }


def _vidur_moves(row: dict) -> dict[str, Operator]:
    rows, hidden = row["num_tokens"], row["n_embd"]
    inner = row["n_expanded_embd"] // row["num_tensor_parallel_workers"]
    moved = {
        "input_layernorm": 2 * rows * hidden,
        "mlp_act": (3 if row["use_gated_mlp"] else 2) * rows * inner,
        "add": 3 * rows * hidden,
    }
    return {name: Elementwise(num_values=values, bytes_per_value=2) for name, values in moved.items()}


def common(first: Table, second: Table) -> tuple[Table, Table]:
    """The rows of operators that both have, in one order."""
    at = {operator: i for i, operator in enumerate(second.operators)}
    here = [i for i, operator in enumerate(first.operators) if operator in at]
    there = [at[first.operators[i]] for i in here]
    return first.take(np.array(here)), second.take(np.array(there))


def blocks(operators: tuple[Operator, ...], largest: int = 8192) -> np.ndarray:
    """Where the three products of a block stand: (h×h), (f×h), (h×f) at one number of rows; f from h/4 to 4·h."""
    at = {(o.rows, o.outputs, o.inputs): i for i, o in enumerate(operators) if isinstance(o, Matmul)}
    return np.array(
        [
            (at[rows, h, h], i, at[rows, h, f])
            for (rows, f, h), i in at.items()
            if h <= largest and h <= 4 * f <= 16 * h and (rows, h, h) in at and (rows, h, f) in at
        ]
    )


def block_s(at: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Two of the first, two of the second, one of the third."""
    return 2 * times_s[at[:, 0]] + 2 * times_s[at[:, 1]] + times_s[at[:, 2]]


def sums(folder: Path, gpu: str, table: Table) -> np.ndarray:
    """Where the four products of a layer stand in a table of Vidur's, for each of its rows that has all of them."""
    at = {operator: i for i, operator in enumerate(table.operators)}
    rows = [
        list(_vidur_matmuls(row).values())
        for file in sorted((folder / "hw" / "vidur" / "compute" / gpu).glob("*/*/mlp.csv"))
        for row in pd.read_csv(file).drop_duplicates(["num_tokens", "num_tensor_parallel_workers"]).to_dict("records")
    ]
    return np.array([[at[operator] for operator in row] for row in rows if all(operator in at for operator in row)])


def two_constants_s(operators: Sequence[Operator], ceilings: Ceilings) -> np.ndarray:
    """aiconfigurator's default without a table: 0.8 of the bandwidth, and 3 µs."""
    slower = replace(ceilings, read_bytes_per_s=_figure(0.8 * ceilings.read_bytes_per_s.value))
    return roofline_s(operators, slower) + 3e-6


def summary(predicted_s: np.ndarray, measured_s: np.ndarray) -> dict[str, float]:
    """Relative errors: how many, the absolute ones' mean, median and 90th percentile, the share within 10 %, bias."""
    error = predicted_s / measured_s - 1
    size = np.abs(error)
    return {
        "n": len(error),
        "mean": float(size.mean()),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
        "within_10": float((size <= 0.1).mean()),
        "bias": float(error.mean()),
    }


def honesty(times: Times, measured_s: np.ndarray) -> dict[str, float]:
    """How often the interval holds the measurement, and its width: the median of high / low."""
    inside = (times.low_s <= measured_s) & (measured_s <= times.high_s)
    return {"coverage": float(inside.mean()), "width": float(np.median(times.high_s / times.low_s))}


def write(topic: str, rows: list[dict], extra: dict) -> Path:
    """Print the rows as a table and write them with date, machine and command."""
    for row in rows:
        cells = [f"{row[key]:>22}" for key in ("setting", "method", "what")]
        cells += [f"{row['n']:6.0f}"] + [f"{100 * row[key]:6.1f}" for key in ("mean", "median", "p90", "within_10")]
        cells += [f"{100 * row['bias']:+6.1f}"]
        cells += [f"{100 * row['coverage']:6.1f} {row['width']:5.2f}×"] if "coverage" in row else []
        print(" ".join(cells))
    today = datetime.now(UTC).date().isoformat()
    file = Path(__file__).parents[1] / "results" / f"{topic}_open-gpu-tables_{today}.json"
    record = {
        "date": today,
        "command": f"OMP_NUM_THREADS=1 python benchmarks/costmodel/{Path(sys.argv[0]).name} --data DATA",
        "machine": {"system": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("numpy", "scipy", "pandas")},
        **extra,
        "rows": rows,
    }
    file.write_text(json.dumps(record, indent=1) + "\n")
    return file


def _read(folder: Path, gpu: str, pattern: str) -> pd.DataFrame:
    (file,) = (folder / "hw" / "aiconfigurator" / "data" / f"{gpu}_sxm").glob(pattern)
    return pd.read_parquet(file)
