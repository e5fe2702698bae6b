"""Readers of open tables of kernel times: aiconfigurator's by NVIDIA and Vidur's by Microsoft. Times become seconds."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.profiler.operator_features import bytes_and_flop, peaks_of
from blockwright.profiler.operators import Attend, Matmul, Operator
from blockwright.profiler.utilisation import MOST_UTILISATION, Timed

FORMATS = {"bfloat16": "bf16", "fp8": "fp8"}
SYSTEMS = {"H100": "h100_sxm", "H200": "h200_sxm", "B200": "b200_sxm", "A100": "a100_sxm"}

UNITS = {"H100": 132, "H200": 132, "B200": 148, "A100": 108, "A40": 84}
"""Streaming multiprocessors, by NVIDIA's data sheets, which also say what follows."""
CACHE_BYTES = {"H100": 50e6, "H200": 50e6, "B200": 126e6, "A100": 40e6, "A40": 6e6}
_UNSEEN_LAUNCH_S = 3e-6
"""aiconfigurator's constant for all of its systems, until rows are learnt."""
_SHARE_OF_FASTEST = 0.8
"""That a launch has of the fastest row: our judgement, for that row does next to nothing."""
VIDUR = {"A100": (2039e9, 312e12), "H100": (3350e9, 989e12), "A40": (696e9, 149.7e12)}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One kind of kernel on one device."""

    device: str
    name: str
    ceilings: Ceilings
    """Of data sheets; the launch is a constant until `seen` finds it."""
    operators: tuple[Operator, ...]
    seconds: np.ndarray
    num_refused: int
    """Rows that were faster than the ceilings allow."""

    def seen(self, learn: np.ndarray) -> "Table":
        """The same table with a launch by the rows that are learnt, and by no other."""
        launch_s = _figure(_SHARE_OF_FASTEST * float(self.seconds[learn].min()))
        return replace(self, ceilings=replace(self.ceilings, launch_s=launch_s))

    def timed(self, rows: np.ndarray) -> list[Timed]:
        """Some of the rows, as a profile would have them."""
        return [Timed(operator=self.operators[row], time_s=float(self.seconds[row])) for row in rows]


def products(data: Path, device: str, dtype: str) -> Table:
    """Products of matrices, of one data type."""
    frame = _read(data, device, "gemm", "gemm_perf.parquet")
    frame = frame[frame.gemm_dtype == dtype].groupby(["m", "n", "k"], as_index=False).latency.median()
    size = 2 if dtype == "bfloat16" else 1
    operators: list[Operator] = [
        Matmul(rows=m, inputs=k, outputs=n, weights=FORMATS[dtype], weight_bytes=size * n * k, bytes_per_value=size)
        for m, n, k in frame[["m", "n", "k"]].itertuples(index=False)
    ]
    return _table(data, device, f"products {FORMATS[dtype]}", operators, frame.latency.to_numpy() * 1e-3)


def attention(data: Path, device: str, phase: str) -> Table:
    """Attention over the whole context with a cache of bf16: ``decode`` or ``prefill``."""
    name = {"decode": "generation", "prefill": "context"}[phase]
    frame = _read(data, device, "attention", f"{name}_attention_perf.parquet")
    frame = frame.query("kv_cache_dtype == 'bfloat16'")
    if "window_size" in frame:
        frame = frame.query("window_size == 0")
    if phase == "prefill":
        frame = frame.query("isl > 1")  # a prompt of one token runs what decoding does
    keys = ["batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim"]
    frame = frame.groupby(keys, as_index=False).latency.median()
    operators: list[Operator] = [
        Attend(
            batch=batch,
            new_tokens=1 if phase == "decode" else isl,
            context=isl + step,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            bytes_per_value=2,
            kv_bytes_per_value=2,
        )
        for batch, isl, step, heads, kv_heads, head_dim in frame[keys].itertuples(index=False)
    ]
    return _table(data, device, f"attention {phase}", operators, frame.latency.to_numpy() * 1e-3)


def vidur(data: Path, device: str) -> Table:
    """Products of all models and degrees of tensor parallelism of one device."""
    times: dict[Operator, list[float]] = {}
    for path in sorted((data / "hw" / "vidur" / "compute" / device.lower()).rglob("mlp.csv")):
        for row in pd.read_csv(path).to_dict("records"):
            split, width, ffn = row["num_tensor_parallel_workers"], int(row["n_embd"]), int(row["n_expanded_embd"])
            head_dim = width // row["n_head"]
            qkv = int((row["n_head"] + 2 * row["n_kv_head"]) // split * head_dim)
            shapes = {
                "attn_pre_proj": (width, qkv),
                "attn_post_proj": (width // split, width),
                "mlp_up_proj": (width, (2 if row["use_gated_mlp"] else 1) * ffn // split),
                "mlp_down_proj": (ffn // split, width),
            }
            for name, (inputs, outputs) in shapes.items():
                operator = Matmul(
                    rows=int(row["num_tokens"]),
                    inputs=int(inputs),
                    outputs=int(outputs),
                    weights="bf16",
                    weight_bytes=2 * int(inputs) * int(outputs),
                    bytes_per_value=2,
                )
                seconds = row[f"time_stats.{name}.median"] * 1e-3
                if seconds > 0:
                    times.setdefault(operator, []).append(seconds)
    seconds = np.array([np.median(each) for each in times.values()])
    ceilings = _ceilings(device, *VIDUR[device], None)
    return _kept(device, "products fp16 (Vidur)", ceilings, list(times), seconds)


def _read(data: Path, device: str, family: str, name: str) -> pd.DataFrame:
    folder = data / "hw" / "aiconfigurator" / "data" / SYSTEMS[device] / family
    return pd.read_parquet(next(folder.rglob(name)))


def _table(data: Path, device: str, name: str, operators: list[Operator], seconds: np.ndarray) -> Table:
    path = data / "hw" / "aiconfigurator" / f"{SYSTEMS[device]}.yaml"
    gpu = yaml.safe_load(path.read_text())["gpu"]
    ceilings = _ceilings(device, gpu["mem_bw"], gpu["bfloat16_tc_flops"], gpu.get("fp8_tc_flops"))
    return _kept(device, name, ceilings, operators, seconds)


def _ceilings(device: str, bandwidth: float, bf16: float, fp8: float | None) -> Ceilings:
    rates = {"bf16": bf16} | ({"fp8": fp8} if fp8 else {})
    return Ceilings(
        read_bytes_per_s=_figure(bandwidth),
        flop_per_s={name: _figure(rate) for name, rate in rates.items()},
        launch_s=_figure(_UNSEEN_LAUNCH_S),
        num_units=UNITS[device],
        cache_bytes=int(CACHE_BYTES[device]),
    )


def _figure(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, origin="modelled", source="data sheet")


def _kept(device: str, name: str, ceilings: Ceilings, operators: list[Operator], seconds: np.ndarray) -> Table:
    least = peaks_of(ceilings, operators[0]).least_s(*bytes_and_flop(operators))
    kept = np.flatnonzero(least <= MOST_UTILISATION * seconds)
    return Table(
        device=device,
        name=name,
        ceilings=ceilings,
        operators=tuple(operators[row] for row in kept),
        seconds=seconds[kept],
        num_refused=len(operators) - len(kept),
    )
