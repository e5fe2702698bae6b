"""Rows of a profile, and how to break its files."""

import hashlib
from pathlib import Path
from typing import Any

from blockwright.hw_profiles.profile import OperatorRow
from blockwright.hw_profiles.provenance import AccuracyRow

TIMES: dict[str, Any] = {"time_s": 2e-5, "low_s": 1e-5, "high_s": 3e-5, "num_samples": 30, "num_rejected": 1}
ROW: dict[str, Any] = {"backend": "onnxruntime", "origin": "measured", **TIMES}
OPERATORS = (
    OperatorRow(
        kind="matmul",
        fields={
            "rows": 1,
            "inputs": 64,
            "outputs": 32,
            "weights": "int4-g32",
            "weight_bytes": 1280,
            "bytes_per_value": 4,
        },
        **ROW,
    ),
    OperatorRow(
        kind="attend",
        fields={
            "batch": 1,
            "new_tokens": 2,
            "context": 8,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "bytes_per_value": 4,
            "kv_bytes_per_value": 4,
            "is_causal": False,
        },
        **ROW,
    ),
    OperatorRow(kind="elementwise", fields={"num_values": 640, "bytes_per_value": 4}, **ROW),
)
ACCURACY = AccuracyRow(
    quantity="memory",
    format="fp32",
    phase="both",
    num_held_out=2,
    mean_error=0.1,
    median_error=0.1,
    p90_error=0.1,
    worst_error=0.1,
    bias=0.0,
    kendall_tau=None,
    interval_coverage=1.0,
)
PART, WHOLE, MEMORY, MATMUL, ATTEND = 0, 18, 30, 34, 35
"""Where rows of each kind stand in the table."""


def sum_again(folder: Path) -> Path:
    """As someone does who edits a file and wants it to be read all the same."""
    files = [folder / "profile.json", folder / "measurements.csv"]
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder
