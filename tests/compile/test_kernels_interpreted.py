"""Runs `interpreted_kernels.py`, all of it, where Triton is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton: Any = pytest.importorskip("triton", reason="Triton is needed (the extra triton)")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
    pytest.skip("Triton 3.6's interpreter does not go with numpy 2.4, 3.9's does", allow_module_level=True)

CASES = Path(__file__).with_name("interpreted_kernels.py")


def test_the_kernels_compute_what_their_twins_compute(tmp_path: Path) -> None:
    settings = {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, env=os.environ | settings, cwd=CASES.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= CASES.read_text().count("\ndef test_")
    assert "skipped" not in done.stdout
