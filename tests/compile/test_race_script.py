"""benchmarks/gpu/race.py as far as it goes without a GPU."""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockwright.compile.device_session import DeviceSequences
from blockwright.errors import InputError
from tensorrt_here import needs_rtx

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/race.py"
PLAYERS = ("torch.compile, int4-g64", "ONNX Runtime contrib, fp16")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module


@pytest.mark.slow
def test_the_script_races_on_the_cpu_and_claims_nothing_of_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is needed (the extra triton)")
    words = ["--device", "cpu", "--small", "--only", ";".join(PLAYERS), "--without-kernels", "--out", str(tmp_path)]
    words += ["--batches", "1,2"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (page,), (file,) = (list(tmp_path.glob(f"race_cpu_*.{kind}")) for kind in ("md", "json"))
    results = json.loads(file.read_text())
    assert "says nothing of a GPU" in page.read_text() and results["accelerator"] is None
    why = {row["name"]: row["why"] for row in results["contestants"]}
    assert {name for name, said in why.items() if said is None} == {"torch eager, fp16", *PLAYERS}
    assert why["torch.compile, fp16"] == "it was not asked for" and "tensorrt_rtx, int4-g64" in why
    for row in results["contestants"]:
        if row["name"] in PLAYERS:
            assert 0 < max(row["came"]["compared"]["differences"].values()) < 2e-2
            assert f"| {row['name']} | opened, tried, compared |" in page.read_text()
    assert len(results["rounds"]) == 2
    for each in results["rounds"]:
        assert each["copy_bytes_per_s"] > 0
        words = ("contestant", "model", "what", "tokens", "batch")
        timed = {tuple(row[word] for word in words) for row in each["times"]}
        assert len(timed) == len(each["times"]) == 3 * 2 * 3 * 2 and all(row["time_s"] > 0 for row in each["times"])
    assert results["unchecked"] is None and "Logits must agree" in page.read_text()
    first, second = ([row["contestant"] for row in each["times"][:3]] for each in results["rounds"])
    assert sorted(first) == sorted(second) and first != second, "the one who begins changes"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_the_script_says_what_to_do(module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["race.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="--device cpu --small tries the script out"):
        module("race").main()
    assert not (tmp_path / "out").exists()


def _entry(module: Any, **changes: Any) -> Any:
    players = module("race_players")
    given: dict[str, Any] = {"runtime": "copy", "variant": "", "format": "fp16", "device": "cpu", "capability": None}
    return players.Entry(**given | {"is_small": True, "batches": (1,)} | changes)


def test_who_refuses_who_dies_and_who_takes_too_long_are_told_apart(module: Any, tmp_path: Path) -> None:
    processes = module("race_processes")
    entries = {
        "refuses": _entry(module, runtime="ONNX Runtime", variant="ONNX Runtime standard", device="cuda"),
        "dies": _entry(module, runtime="nobody"),
        "sleeps": _entry(module),
    }
    started = {name: processes.Contestant(entry, tmp_path / name) for name, entry in entries.items()}
    for each in started.values():
        each.set_up(time.monotonic() + 60)
    assert started["sleeps"].why is None and started["sleeps"].ask({}, 60)["bytes_per_s"] > 0
    os.kill(started["sleeps"]._process.pid, signal.SIGSTOP)  # so that it cannot answer, however fast it is
    assert started["sleeps"].ask({}, 0.0) == {"why": "it took longer than there was time for"}
    for each in started.values():
        each.end()
    assert started["dies"].why == "the process ended with exit code 1: KeyError: 'nobody'"
    assert "cuda" in started["refuses"].why.lower() and "refused" in started["refuses"].came
    assert started["dies"].ask({}, 1.0) == {"why": started["dies"].why}


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU opens the plan")
def test_plans_of_both_models_are_built_before_they_are_refused(module: Any) -> None:
    engines = module("race_engines")
    entry = _entry(module, runtime="TensorRT", variant="tensorrt_rtx", format="int4-g64", capability="sm86")
    with pytest.raises(InputError, match="GPU: got none that torch sees"):
        engines.TensorRt(entry)


def test_what_was_said_in_time_counts_however_late_it_is_read(module: Any, tmp_path: Path) -> None:
    processes = module("race_processes")
    copy = processes.Contestant(_entry(module), tmp_path / "copy")
    assert select.select([copy._process.stdout], [], [], 60)[0]
    copy.set_up(time.monotonic() - 1)
    copy.end()
    assert copy.why is None and "ready" in copy.came


def test_ratios_are_of_the_same_round_and_missing_times_are_none(module: Any) -> None:
    page = module("race_page")
    assert page._ratio([2.0, None, 9.0], [1.0, 5.0, 3.0]) == "2.50 (2.00 to 3.00)"
    assert page._ratio([None], [1.0]) == "–" == page._median([None])
    assert page._median([None, 0.001, 0.003]) == "2.00"


def test_what_kernels_find_counts_only_if_they_are_done_in_time(module: Any, tmp_path: Path) -> None:
    asked = Namespace(small=True, device="cpu")
    said = module("race").kernels(asked, tmp_path, 0.0)
    assert said == {"why": "they were not done in the 0 s that were left"}
    assert module("race_page")._kernels(said)[-1] == f"Not measured: {said['why']}"
    assert module("race_page")._kernels(None) == []


WRONG = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import race_contestant, race_torch
Eager = race_torch.Eager

class Off(Eager):
    def logits(self, name, text):
        return super().logits(name, text) * (1.2 if name == "child" else 1.0)

class Silent(Eager):
    def reference(self, name, stored):
        raise RuntimeError("no room | at all")

race_torch.PLAYERS |= {"torch.compile": Off} if sys.argv.pop(1) == "off" else {"torch eager": Silent}
race_contestant.main()
"""


def _raced(module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, wrong: str) -> tuple[dict[str, Any], str]:
    """A race of transformers with themselves, of which one does something wrong; and its page."""
    race, processes = module("race"), module("race_processes")
    script = f"import sys; sys.argv[1:1] = [{str(SCRIPT.parent)!r}, {wrong!r}]\n{WRONG}"
    (folder / "contestant.py").write_text(script)
    monkeypatch.setattr(processes, "_CONTESTANT", folder / "contestant.py")
    asked = Namespace(device="cpu", small=True, batches="1", only="torch.compile, fp16", minutes=3.0)
    results, entries = race.look_round(asked)
    contestants = race.set_up(entries, folder, time.monotonic() + 120)
    try:
        results["unchecked"] = race.compare(contestants, results["contestants"], folder)
        race.race(contestants, results, folder / "race", time.monotonic() + 120)
    finally:
        for each in contestants:
            each.end()
    return results, (folder / "race.md").read_text()


def _timed(results: dict[str, Any]) -> set[str]:
    return {row["contestant"] for each in results["rounds"] for row in each["times"] if "time_s" in row}


@pytest.mark.slow
def test_one_whose_logits_are_off_is_listed_and_not_timed(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results, page = _raced(module, monkeypatch, tmp_path, "off")
    (why,) = (row["why"] for row in results["contestants"] if row["name"] == "torch.compile, fp16")
    assert why.startswith("its logits are off by") and why.endswith("of their spread, more than 5e-02")
    assert "| torch.compile, fp16 | opened, tried, compared |" in page and why in page
    assert _timed(results) == {"torch eager, fp16"} and results["unchecked"] is None


@pytest.mark.slow
def test_where_the_reference_fails_the_page_says_that_nobody_was_compared(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results, page = _raced(module, monkeypatch, tmp_path, "silent")
    assert _timed(results) == {"torch.compile, fp16"} and results["unchecked"].endswith("no room | at all")
    assert "**Nobody's logits were compared**" in page and "no room / at all" in page
    assert "Logits must agree" not in page


@pytest.fixture
def engines(module: Any) -> Any:
    """Our engines in ONNX Runtime as a contestant, tiny and on the CPU, of one text and of two."""
    entry = _entry(module, runtime="ONNX Runtime", variant="ONNX Runtime standard", batches=(1, 2))
    return module("race_engines").OnnxRuntime(entry)


def _differences(module: Any, engines: Any, folder: Path) -> dict[str, Any]:
    contestant, entry = module("race_contestant"), engines.entry
    order = {"folder": str(folder), "formats": [entry.format]}
    if not list(folder.glob("*.npz")):
        reference = module("race_torch").Eager(replace(entry, runtime="torch eager", variant=""))
        assert contestant.write_references(reference, order) == {"is_written": True}
    return contestant.compared(engines, order, entry.cases)


@pytest.mark.parametrize("where", ["behind the longest context", "side by side"])
def test_logits_that_are_wrong_only_in_some_of_what_is_timed_are_found(
    module: Any, engines: Any, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = _differences(module, engines, tmp_path)
    assert set(right) == {"differences"} and max(right["differences"].values()) < 2e-2
    step = DeviceSequences.step

    def wrong(sequences: Any, ids_B: Any) -> Any:
        logits_BV = step(sequences, ids_B)
        if where == "side by side":
            return logits_BV[::-1]
        return -logits_BV if sequences.lengths_B.max() > max(engines.entry.plan.contexts) else logits_BV

    monkeypatch.setattr(DeviceSequences, "step", wrong)
    assert min(_differences(module, engines, tmp_path)["differences"].values()) > 0.5


def test_logits_that_are_no_numbers_are_told_in_words(
    module: Any, engines: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _differences(module, engines, tmp_path)
    logits = engines.logits
    monkeypatch.setattr(engines, "logits", lambda name, text: logits(name, text) * (np.nan if name == "child" else 1))
    found = _differences(module, engines, tmp_path)
    assert found["why"].startswith("its logits are not all numbers: child") and set(found["differences"]) == {"parent"}


def test_what_did_not_run_is_not_compared(module: Any, engines: Any, tmp_path: Path) -> None:
    _differences(module, engines, tmp_path)
    parents = [case for case in engines.entry.cases if case[0] == "parent"]
    order = {"folder": str(tmp_path)}
    assert set(module("race_contestant").compared(engines, order, parents)["differences"]) == {"parent"}


def test_sequences_are_started_before_the_clock_and_used_again(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, tokens in (("prefill", 48), ("decode", 16)):
        engines.time_s("child", what, tokens, 2)

    def start(*given: object) -> None:
        raise AssertionError("it was started before")

    monkeypatch.setattr(engines._decoders["child"], "start", start)
    assert engines.time_s("child", "prefill", 48, 2) > 0 and engines.time_s("child", "decode", 16, 2) > 0
