"""decode.py, export.py and startup.py of benchmarks/compile, on tiny shapes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "compile"
PEERS = {"llama.cpp, repacked", "llama.cpp, as stored"}
JOBS = """
import sys
from common import apart, spread

if "--one" in sys.argv:
    if "second" in sys.argv:
        sys.exit("no such job")
    print("loading")
    print('{"flags": ["' + sys.argv[-1] + '"]}')
else:
    print(spread([3, 1, 8, 4]))
    print(apart(__file__, "first", "folder", "--small"))
    apart(__file__, "second", "folder")
"""


def _run(tmp_path: Path, name: str, *flags: str) -> dict[str, Any]:
    """Runs a script; its results, after what holds of all."""
    words = ["--small", "--rounds", "1", *flags, "--out", str(tmp_path / "results")]
    done = subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (page,), (file,) = (list((tmp_path / "results").glob(f"{name}_*.{kind}")) for kind in ("md", "json"))
    results = json.loads(file.read_text())
    assert results["command"] == shlex.join(["python", f"benchmarks/compile/{name}.py", *words])
    assert f"`{results['command']}` at {results['commit']} on " in page.read_text()
    assert all(f"| {row['name']} |" in page.read_text() for row in results["rows"])
    return results


def _needs_llama_cpp() -> None:
    for module, extra in (("xllamacpp", "clients"), ("gguf", "gguf")):
        pytest.importorskip(module, reason=f"{module} is needed (the extra {extra})")


@pytest.mark.slow
def test_decode_races_every_contestant_in_every_phase(tmp_path: Path) -> None:
    _needs_llama_cpp()
    few = ("--threads", "1", "--new-tokens", "4", "--formats", "int4-g32")
    rows = _run(tmp_path, "decode", *few, "--work", str(tmp_path))["rows"]
    ours = {"int4-g32, contrib", "int4-g32, standard", "int4-g32, contrib, ONNX Runtime's operators"}
    theirs = {"llama.cpp Q4_0, repacked", "llama.cpp Q4_0, as stored"}
    phases = {(row["phase"], row["context_tokens"]) for row in rows}
    assert phases == {("prefill", 0), ("decode", 32), ("decode", 256)}
    times = {(row["phase"], row["context_tokens"], row["name"]): row["time_s"]["median"] for row in rows}
    assert times.keys() == {(*phase, name) for phase in phases for name in ours | theirs}
    for row in rows:
        phase = row["phase"], row["context_tokens"]
        assert theirs - {row["name"]} <= row["times_as_fast_as"].keys()
        for peer, faster in row["times_as_fast_as"].items():
            assert faster["median"] == times[*phase, peer] / times[*phase, row["name"]]
        assert (row["share_of_bound"] is not None) == (row["phase"] == "decode" and row["name"] in ours)
    assert [path.name for path in tmp_path.iterdir()] == ["results"], "engines are left behind"


@pytest.mark.slow
def test_startup_starts_every_contestant(tmp_path: Path) -> None:
    _needs_llama_cpp()
    results = _run(tmp_path, "startup")
    (times,) = results["rounds"]
    ours = {f"{kind}, {whose} operators" for kind in ("contrib", "standard") for whose in ("our", "onnxruntime's")}
    assert times.keys() == {row["name"] for row in results["rows"]} == ours | PEERS
    for row in results["rows"]:
        assert 0 < row["open_s"]["median"] < row["all_s"]["median"]
        for kind, faster in row["times_as_fast_as"].items():
            assert {peer: faster[peer]["median"] for peer in PEERS} == {
                peer: times[peer][kind] / times[row["name"]][kind] for peer in PEERS
            }


@pytest.mark.slow
def test_export_writes_with_torch_and_with_ours(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is needed, by torch's exporter")
    results = _run(tmp_path, "export", "--work", str(tmp_path))
    (times,) = results["rounds"]
    assert list(times) == ["torch.onnx.export, fp32", "ours, fp32", "ours, int4"]
    torch_s = times["torch.onnx.export, fp32"]["time_s"]
    for row in results["rows"]:
        assert row["times_as_fast_as_torch"]["median"] == torch_s / times[row["name"]]["time_s"]
    written = {row["name"]: row["written_bytes"] for row in results["rows"]}
    assert written["ours, int4"] < 0.5 * results["checkpoint_bytes"] < written["ours, fp32"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"], "graphs are left behind"


def test_a_job_that_fails_ends_the_script_with_its_words(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(JOBS)
    surroundings = os.environ | {"PYTHONPATH": str(FOLDER)}
    done = subprocess.run([sys.executable, str(script)], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "second: no such job"
    assert done.stdout.splitlines() == ["{'median': 3.5, 'low': 1, 'high': 8}", "{'flags': ['--small']}"]
