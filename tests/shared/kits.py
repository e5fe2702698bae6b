"""A kit, unpacked and run by a Python with nothing of ours."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockwright.cost import Load
from blockwright.llama import llama
from blockwright.profiler.kit import KitOrder
from blockwright.spec import FP32, Attention, Block, Format, GatedFFN, LinearMixer, NoOp, Window

INT4 = Format(name="int4", group_size=32)
MIXERS = (Attention(num_kv_heads=2), Attention(num_kv_heads=1, reach=Window(num_tokens=16)), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=64), NoOp())
MODEL = llama(
    (Block(mixer=MIXERS[0], ffn=FFNS[0]),) * 2,
    vocab_size=96,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=256,
)
LOAD = Load(batch=2, prompt_tokens=40, new_tokens=24)
ORDER = KitOrder(parent=MODEL, mixers=MIXERS, ffns=FFNS, formats=(FP32, INT4), loads=(LOAD,))


def bare_python(folder: Path) -> dict[str, str]:
    """An environment in which Python finds numpy and onnxruntime, and nothing else that is installed here."""
    folder.mkdir()
    for package in ("numpy", "onnxruntime"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).parent
        (folder / package).symlink_to(source)
        if (libraries := source.with_name(f"{package}.libs")).exists():
            (folder / libraries.name).symlink_to(libraries)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def run_kit(folder: Path, environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(folder / "run.py"), "--seconds", "0.001", *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def sum_anew(folder: Path) -> None:
    """As if the runner had written what stands there."""
    files = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def edit_results(path: Path, change: Callable[[Any], None], remake_sums: bool = True) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    if remake_sums:
        sum_anew(path.parent)


def fail_case(data: dict[str, Any]) -> None:
    del data["timings"]
    data["error"] = "RuntimeError: out of memory"


def cut_short(folder: Path) -> None:
    path = folder / "case-0002.json"
    path.write_bytes(path.read_bytes()[:-20])
