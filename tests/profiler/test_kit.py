"""Kits: packed here, run where there is nothing but Python, numpy and onnxruntime, and taken in again."""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockwright.cli.main import main
from blockwright.compile.engine import SessionSettings
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.conditions import conditions_now
from blockwright.hw_profiles.device import cache_bytes, installed_software, this_device
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.machine import Machine
from blockwright.hw_profiles.profile import Point
from blockwright.llama import llama
from blockwright.profiler import ceilings, kit_runner
from blockwright.profiler.clock import OUTLIER_RULE
from blockwright.profiler.cost_model import predict
from blockwright.profiler.kit import KitOrder, write_kit
from blockwright.profiler.kit_results import read_kit_results
from blockwright.profiler.measure import MemoryCase, PartCase, WholesCase
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


def _bare_python(folder: Path) -> dict[str, str]:
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


def _run(folder: Path, environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(folder / "run.py"), "--seconds", "0.001", *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def small_ceilings() -> Any:
    """The large matrix is 256 MiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "_ROWS", 256)
        yield


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, small_ceilings: None) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    assert write_kit(ORDER, folder / "kit.zip") == len(ORDER.cases()) + len(ceilings.ceiling_cases())
    with zipfile.ZipFile(folder / "kit.zip") as archive:
        archive.extractall(folder / "kit")
    return folder / "kit"


@pytest.fixture(scope="module")
def results(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = _bare_python(tmp_path_factory.mktemp("python") / "packages")
    done = _run(unpacked, environment)
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout
    return unpacked / "results"


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(results, tmp_path / "results"))


def test_a_bare_python_has_nothing_of_ours(tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'blockwright', 'scipy') if u.find_spec(n)])"
    command = [sys.executable, "-S", "-c", code]
    environment = _bare_python(tmp_path / "packages")
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
    done = _run(unpacked, _bare_python(tmp_path / "packages"), "--out", str(copied))
    assert done.returncode == 0, done.stderr
    assert (copied / "case-0003.json").exists()
    assert (copied / "case-0000.json").stat().st_mtime_ns == kept


def test_a_case_that_fails_is_told_and_the_others_are_measured(unpacked: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(unpacked, tmp_path / "kit", ignore=shutil.ignore_patterns("results")))
    (broken / "graphs" / "00000.onnx").write_bytes(b"no graph")
    done = _run(broken, _bare_python(tmp_path / "packages"))
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
    _edit(failed, _fail)
    done = _run(unpacked, _bare_python(tmp_path / "packages"), "--out", str(copied))
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
    _edit(copied / "device.json", lambda data: data.update(change.get("device", {})))
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
    _edit(copied / "cases.json", lambda data: data.update(order=None))
    done = _run(unpacked, _bare_python(tmp_path / "packages"), "--out", str(copied))
    assert done.returncode == 0, done.stderr
    assert "another kit's" in done.stdout and (tmp_path / "results.before-1" / "case-0000.json").exists()
    assert read_kit_results(copied).coverage.status == "complete"


def test_a_kit_knows_no_trtexec(unpacked: Path, tmp_path: Path) -> None:
    """What it would give cannot be taken in."""
    done = _run(unpacked, _bare_python(tmp_path / "packages"), "--trtexec")
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


def _sum_anew(folder: Path) -> None:
    """As if the runner had written what stands there."""
    files = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _edit(path: Path, change: Callable[[Any], None], remake_sums: bool = True) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    if remake_sums:
        _sum_anew(path.parent)


def _fail(data: dict[str, Any]) -> None:
    del data["timings"]
    data["error"] = "RuntimeError: out of memory"


def _ceiling(folder: Path) -> Path:
    """The result of the ceiling that every profile needs."""
    [path] = [
        path
        for path in folder.glob("case-*.json")
        if json.loads(path.read_text())["name"].startswith("ceiling rate fp32")
    ]
    return path


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("cases.json", lambda data: data.update(schema_version=9), "schema_version"),
        ("case-0002.json", lambda data: data.update(name="another"), "two kits"),
        ("case-0002.json", lambda data: data["timings"].pop(), "measurements"),
        ("case-0002.json", lambda data: data["timings"][0].update(median_s="soon"), "median_s"),
        ("device.json", lambda data: data.update(backend="tensorrt"), "backend"),
        ("device.json", lambda data: data.pop("software"), "software"),
    ],
)
def test_damaged_results_are_refused_by_name(
    copied: Path, file: str, change: Callable[[Any], None], words: str
) -> None:
    _edit(copied / file, change)
    with pytest.raises(InputError, match=words):
        read_kit_results(copied)


def test_results_without_ceilings_are_refused(copied: Path) -> None:
    _ceiling(copied).unlink()
    _sum_anew(copied)
    with pytest.raises(InputError, match="rate fp32"):
        read_kit_results(copied)


def test_a_ceiling_that_failed_is_refused_by_name(copied: Path) -> None:
    _edit(_ceiling(copied), _fail)
    with pytest.raises(InputError, match="none of rate fp32"):
        read_kit_results(copied)


def test_a_ceiling_without_times_is_damaged(copied: Path) -> None:
    _edit(_ceiling(copied), lambda data: data.update(timings=[]))
    with pytest.raises(InputError, match="ceiling rate fp32: got 0 measurements"):
        read_kit_results(copied)


def test_an_empty_folder_is_no_result(copied: Path) -> None:
    for path in copied.glob("case-*.json"):
        path.unlink()
    _sum_anew(copied)
    with pytest.raises(InputError, match="no result that succeeded"):
        read_kit_results(copied)


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


def _doubled(data: dict[str, Any]) -> None:
    for timing in data["timings"]:
        timing |= {name: 2 * timing[name] for name in ("calm_s", "low_s", "high_s", "typical_s")}


def _truncate(folder: Path) -> None:
    path = folder / "case-0002.json"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: _edit(folder / "case-0002.json", _doubled, remake_sums=False), "case-0002.json"),
        (_truncate, "case-0002.json"),
        (lambda folder: (folder / "case-0002.json").unlink(), "case-0002.json: got no such file"),
        (lambda folder: shutil.copy(folder / "case-0002.json", folder / "case-9999.json"), "case-9999.json"),
        (lambda folder: _edit(folder / "device.json", lambda d: d.update(threads=2), remake_sums=False), "device.json"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS: got no such file"),
        (lambda folder: (folder / "SHA256SUMS").write_text("no sums"), "a line of SHA256SUMS for it"),
    ],
)
def test_results_that_are_not_what_the_runner_wrote_are_refused(
    copied: Path, harm: Callable[[Path], object], words: str
) -> None:
    harm(copied)
    with pytest.raises(InputError, match=words) as caught:
        read_kit_results(copied)
    assert "run the kit again" in caught.value.remedy


def test_digests_are_those_that_sha256sum_checks(results: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=results, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(list(results.glob("*.json")))


def test_what_was_changed_is_measured_again_and_can_then_be_read(unpacked: Path, copied: Path, tmp_path: Path) -> None:
    _truncate(copied)
    kept = (copied / "case-0000.json").stat().st_mtime_ns
    done = _run(unpacked, _bare_python(tmp_path / "packages"), "--out", str(copied))
    assert done.returncode == 0, done.stderr
    assert (copied / "case-0000.json").stat().st_mtime_ns == kept
    assert read_kit_results(copied).coverage.status == "complete"


@pytest.mark.parametrize("place", ["/dev/null", "empty"])
def test_what_is_no_folder_of_results_is_refused_in_words(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no (folder|cases\.json).*run\.py.*llama-bench") as caught:
        read_kit_results(tmp_path / place)
    assert "Name that folder" in caught.value.remedy
