"""benchmarks/gpu/kernels_gpu.py as far as it goes without a GPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is needed (the extra triton)")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu/kernels_gpu.py"


def _run(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    settings = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "results"), *flags]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)


@pytest.mark.slow
def test_the_script_runs_in_the_interpreter_and_claims_no_speed(tmp_path: Path) -> None:
    done = _run(tmp_path, "--interpret", "--small")
    assert done.returncode == 0, done.stderr[-2000:]
    (page,), (file,) = (list((tmp_path / "results").glob(f"kernels_interpreter_*.{kind}")) for kind in ("md", "json"))
    assert "times are worth nothing" in page.read_text()
    results = json.loads(file.read_text())
    assert results["accelerator"] is None and len(results["checks"]) > 30
    assert {row["what"] for row in results["rows"]} == {"product", "decode", "prefill"}
    assert {row.get("dense_by") for row in results["rows"]} == {None, "torch's own choice"}
    for row in results["rows"]:
        assert row["peer"] in row["contestants"] and len(row["contestants"]) > 1


def test_without_a_backend_that_takes_the_heads_torch_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script: Any = importlib.import_module("kernels_gpu")
    bench = SimpleNamespace(has_gpu=True, fastest=lambda takers: next(reversed(takers)))
    ran: list[int] = []
    name, _ = script.fastest(bench, [lambda: ran.append(1)])
    assert name == "EFFICIENT_ATTENTION" and len(ran) == 3, "each backend was tried, the last named is fastest"

    def refused() -> None:
        raise RuntimeError("No available kernel. Aborting execution.")

    assert script.fastest(bench, [refused]) == ("torch's own choice", [refused])


def test_without_a_gpu_the_script_says_what_to_do(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert done.returncode == 1 and "--interpret --small tries the script out" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("failing", "left"), [("sparse", {"dense"}), ("dense", set())])
def test_whoever_fails_is_told_of_and_the_others_are_timed(
    failing: str, left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    race: Any = importlib.import_module("kernels_gpu_race")
    page: Any = importlib.import_module("kernels_gpu_page")

    def fails() -> None:
        raise RuntimeError("no room\nat all")

    runs = {name: [fails if name == failing else lambda: None] for name in ("dense", "sparse")}
    bench = race.Bench(torch.device("cpu"), race.SMALL)
    row = bench.race(runs, {"dense": 1, "sparse": 1}, "dense")
    assert (row["contestants"].keys(), row["failed"]) == (left, {failing: "no room"})
    results = {"accelerator": None, "date": "", "command": "", "commit": "", "triton": "", "copy_bytes_per_s": 1.0}
    results |= {
        "checks": [{"error": 0.0, "case": ""}],
        "rows": [row | {"what": "product", "inputs": 1, "outputs": 1, "rows": 1}],
    }
    assert f"{failing} | failed: no room" in page.as_text(results)
