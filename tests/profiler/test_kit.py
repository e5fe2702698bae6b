"""Kits: packed here, run where there is nothing but Python, numpy and onnxruntime, and taken in again."""

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockwright.cli.main import main
from blockwright.compile.engine import SessionSettings
from blockwright.errors import InputError
from blockwright.hw_profiles.conditions import conditions_now
from blockwright.hw_profiles.device import cache_bytes, installed_software, this_device
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.machine import Machine
from blockwright.hw_profiles.profile import Point
from blockwright.profiler import kit_runner
from blockwright.profiler.clock import OUTLIER_RULE
from blockwright.profiler.cost_model import predict
from blockwright.profiler.kit_results import read_kit_results
from blockwright.profiler.measure import MemoryCase, PartCase, WholesCase
from kits import (
    LOAD,
    MODEL,
    ORDER,
    bare_python,
    cut_short,
    edit_results,
    fail_case,
    run_kit,
)


def test_a_bare_python_has_nothing_of_ours(tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'blockwright', 'scipy') if u.find_spec(n)])"
    command = [sys.executable, "-S", "-c", code]
    environment = bare_python(tmp_path / "packages")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_kit_comes_back_as_a_profile_of_its_device(results: Path) -> None:
    profile = read_kit_results(results)
    assert profile.device == this_device()
    assert profile.software["onnxruntime"] == installed_software()["onnxruntime"]
    assert profile.coverage.status == "complete"
    cases = ORDER.cases().values()
    assert len(profile.times) == sum(isinstance(case, PartCase) for case in cases)
    assert len(profile.wholes) == sum(len(case.models) for case in cases if isinstance(case, WholesCase))
    assert len(profile.memory) == sum(len(case.models) for case in cases if isinstance(case, MemoryCase))
    assert set(profile.ceilings.flop_per_s) == {"fp32", "int8-g32", "int4-g32"}


def test_a_kits_profile_predicts_as_any_other_does(results: Path) -> None:
    costs = predict(read_kit_results(results), MODEL, LOAD)
    assert {"time_per_token", "time_to_first_token", "memory", "disk"} <= costs.keys()


def test_a_kit_runs_the_graphs_that_are_measured_here(unpacked: Path) -> None:
    """Its caches are written in place: what a step writes into a slot is what the same graph writes here."""
    contents = json.loads((unpacked / "cases.json").read_text())
    kit_runner.make_weights(unpacked / "graphs", contents["weights"])
    [case] = [c for c in contents["cases"] if c["name"].startswith("onnxruntime fp32 whole models, batch 2, 1 new")]
    [bound] = case["graphs"][0]["bindings"]
    given = np.load(unpacked / "graphs" / bound["given"])
    assert given["positions"].tolist() == [[63], [63]]
    assert given["mask"].shape == (2, 1, 1, 64) and given["mask"].all()
    kit_runner.bound_run(unpacked / "graphs", case["graphs"][0], 1)()


def test_graphs_carry_no_weights(unpacked: Path) -> None:
    assert max(path.stat().st_size for path in (unpacked / "graphs").glob("*.onnx")) < 60_000


def test_a_killed_run_goes_on(unpacked: Path, results: Path, copied: Path, tmp_path: Path) -> None:
    kept = (copied / "case-0000.json").stat().st_mtime_ns
    (copied / "case-0003.json").unlink()
    done = run_kit(unpacked, bare_python(tmp_path / "packages"), "--out", str(copied))
    assert done.returncode == 0, done.stderr
    assert (copied / "case-0003.json").exists()
    assert (copied / "case-0000.json").stat().st_mtime_ns == kept


def test_a_case_that_fails_is_told_and_the_others_are_measured(unpacked: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(unpacked, tmp_path / "kit", ignore=shutil.ignore_patterns("results")))
    (broken / "graphs" / "00000.onnx").write_bytes(b"no graph")
    done = run_kit(broken, bare_python(tmp_path / "packages"))
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    profile = read_kit_results(broken / "results")
    assert (profile.coverage.status, profile.coverage.failed) == ("partial", 1)
    [why] = profile.coverage.failures
    [name] = {json.loads(path.read_text())["name"] for path in (broken / "results").glob("case-0000.json")}
    assert why.startswith(f"{name}: ") and "00000.onnx" in why
    assert len(profile.times) == sum(isinstance(case, PartCase) for case in ORDER.cases().values()) - 1


def test_what_failed_is_tried_again(unpacked: Path, copied: Path, tmp_path: Path) -> None:
    failed = copied / "case-0000.json"
    edit_results(failed, fail_case)
    done = run_kit(unpacked, bare_python(tmp_path / "packages"), "--out", str(copied))
    assert done.returncode == 0, done.stderr
    assert json.loads(failed.read_text())["timings"]
    assert read_kit_results(copied).coverage.failed == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"cases": b"{}"}, "another kit's"),
        ({"threads": 2}, "threads 1"),
        ({"seconds": 0.002}, "seconds 0.001"),
        ({"device": {"software": {"onnxruntime": "1.0"}}}, "software {'onnxruntime': '1.0'}"),
        ({"device": {"architecture": "other"}}, "architecture other"),
        ({"harmed": "device.json"}, "without an unharmed device.json"),
    ],
)
def test_results_that_new_ones_must_not_be_mixed_with_are_put_aside(
    change: dict[str, Any], why: str, unpacked: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_results(copied / "device.json", lambda data: data.update(change.get("device", {})))
    if "harmed" in change:
        (copied / change["harmed"]).write_text("{")
    asked = argparse.Namespace(out=copied, threads=change.get("threads", 1), seconds=change.get("seconds", 0.001))
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    for number in (1, 2):
        kit_runner.put_aside(asked, change.get("cases", (unpacked / "cases.json").read_bytes()))
        aside = copied.with_name(f"results.before-{number}")
        assert aside.exists() == bool(why) == (not copied.exists())
        told = capsys.readouterr().out
        assert (why in told and str(aside) in told) if why else not told
        if why:
            assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
            shutil.copytree(aside, copied)
    shutil.rmtree(copied)
    kit_runner.put_aside(asked, b"")
    assert not copied.exists(), "there is nothing to put aside"


def test_a_kit_run_over_anothers_results_measures_its_own(unpacked: Path, copied: Path, tmp_path: Path) -> None:
    edit_results(copied / "cases.json", lambda data: data.update(order=None))
    done = run_kit(unpacked, bare_python(tmp_path / "packages"), "--out", str(copied))
    assert done.returncode == 0, done.stderr
    assert "another kit's" in done.stdout and (tmp_path / "results.before-1" / "case-0000.json").exists()
    assert read_kit_results(copied).coverage.status == "complete"


def test_a_kit_knows_no_trtexec(unpacked: Path, tmp_path: Path) -> None:
    """What it would give cannot be taken in."""
    done = run_kit(unpacked, bare_python(tmp_path / "packages"), "--trtexec")
    assert done.returncode == 2 and "unrecognized arguments: --trtexec" in done.stderr


def test_a_kits_profile_claims_no_reference_kernel(results: Path) -> None:
    method = read_kit_results(results).method
    assert method is not None
    rule = method.outlier_rule
    assert "no reference" in rule and "reference kernel" not in rule
    assert rule.partition(". ")[0] == OUTLIER_RULE.partition(". ")[0]


def test_the_command_packs_and_takes_in(
    results: Path, tmp_path: Path, small_parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = tmp_path / "kit.zip"
    assert main(["profile", "pack", "--for", str(small_parent), "--load", "chat=1x16+16", "-o", str(kit)]) == 0
    assert zipfile.is_zipfile(kit)
    assert main(["profile", "import", str(results), "-o", str(tmp_path / "profile")]) == 0
    assert read_profile(tmp_path / "profile").times == read_kit_results(results).times


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_the_runner_asks_all_that_is_read_of_a_device(system: str) -> None:
    asked: set[str] = set()
    answers = {
        "/proc/meminfo": "MemTotal: 1024 kB",
        "/proc/device-tree/compatible": "nvidia,tegra234",
        "sysctl -n hw.memsize": "1024",
    }

    def answer(name: str) -> str | None:
        asked.add(name)
        return answers.get(name)

    machine = Machine(system=system, architecture="arm64", num_usable_cores=None, read=answer, run=answer)
    for read in (this_device, conditions_now, cache_bytes):
        read(machine)
    assert asked <= {*kit_runner.FILES, *kit_runner.COMMANDS}


def test_cases_are_the_same_whatever_the_threads() -> None:
    assert list(ORDER.cases(threads=1)) == list(ORDER.cases(threads=3))
    case = next(iter(ORDER.cases(threads=3).values()))
    assert case.bench.session == SessionSettings(num_threads=3)
    assert isinstance(case, PartCase) and case.point == Point(batch=2, new_tokens=1, slots=64)


def test_what_was_changed_is_measured_again_and_can_then_be_read(unpacked: Path, copied: Path, tmp_path: Path) -> None:
    cut_short(copied)
    kept = (copied / "case-0000.json").stat().st_mtime_ns
    done = run_kit(unpacked, bare_python(tmp_path / "packages"), "--out", str(copied))
    assert done.returncode == 0, done.stderr
    assert (copied / "case-0000.json").stat().st_mtime_ns == kept
    assert read_kit_results(copied).coverage.status == "complete"


@pytest.mark.parametrize("place", ["/dev/null", "empty"])
def test_what_is_no_folder_of_results_is_refused_in_words(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no (folder|cases\.json).*run\.py.*llama-bench") as caught:
        read_kit_results(tmp_path / place)
    assert "Name that folder" in caught.value.remedy
