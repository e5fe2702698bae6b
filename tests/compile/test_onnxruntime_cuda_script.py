"""benchmarks/gpu/onnxruntime_cuda.py as far as it goes without a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blockwright.compile.runtime import ort

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu/onnxruntime_cuda.py"
NOTHING_FITS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import onnxruntime_cuda as script
script.TOLERANCE = -1.0
script.main()
"""


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def _results(folder: Path) -> tuple[str, dict[str, Any]]:
    (page,), (file,) = (list(folder.glob(f"onnxruntime_cpu_*.{kind}")) for kind in ("md", "json"))
    return page.read_text(), json.loads(file.read_text())


def test_the_script_runs_on_the_cpu_and_claims_nothing_of_a_gpu(tmp_path: Path) -> None:
    done = _run(str(SCRIPT), "--device", "cpu", "--small", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    page, results = _results(tmp_path)
    assert "says nothing of a GPU" in page and results["accelerator"] is None and not results["failures"]
    cases = {(row["flavour"], row["format"]) for row in results["rows"]}
    assert cases == {(flavour, each) for flavour in ("standard", "contrib") for each in ("fp32", "fp16", "int4")}
    for row in results["rows"]:
        assert [race["what"] for race in row["races"]] == ["decode", "decode", "prefill"]
        assert all(race["times_fewer_bytes"] > 1.2 for race in row["races"][:2])
        assert all(set(providers) == {"CPUExecutionProvider"} for providers in row["nodes"].values())
        assert max(row["largest_difference"].values()) < 1e-5


def test_engines_that_differ_are_told_and_not_timed(tmp_path: Path) -> None:
    done = _run("-c", NOTHING_FITS, str(SCRIPT.parent), "--device", "cpu", "--small", "--out", str(tmp_path))
    assert done.returncode == 1 and "6 of the engines differ or do not run" in done.stderr
    page, results = _results(tmp_path)
    assert not results["rows"] and len(results["failures"]) == 6
    assert "- contrib, int4: parent's logits: got off by" in page


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="ONNX Runtime for GPUs is here")
def test_without_a_gpu_the_script_says_what_to_do(tmp_path: Path) -> None:
    done = _run(str(SCRIPT), "--out", str(tmp_path / "results"))
    assert done.returncode == 1 and "--device cpu --small tries the script out" in done.stderr
    assert not (tmp_path / "results").exists()
