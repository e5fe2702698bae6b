"""A whole run: its files, and going on after it was killed."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from blockwright.cli.main import main
from blockwright.files import write_json
from blockwright.hw_profiles.folder import read_profile
from blockwright.measured import read_measured
from blockwright.search.plan import read_plan, write_plan
from forked import fork_command

DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or Path(__file__).parents[3] / "shared" / "data")
FILES = [
    "recipe.yaml",
    "manifest.json",
    "profile/profile.json",
    "profile/measurements.csv",
    "library/index.json",
    "scores.parquet",
    "plan.json",
    "realised/config.json",
    "child/model.safetensors",
    "engine/onnxruntime/parent-fp32/engine.json",
    "engine/onnxruntime/child-int4/model.onnx",
    "measured.json",
    "report.html",
]


@pytest.fixture
def again(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the whole run, to be run again."""
    shutil.copytree(small_run / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_writes_every_file_and_ends_with_a_table(small_run: Path) -> None:
    folder, printed = small_run / "run", (small_run / "printed").read_text()
    assert all((folder / file).exists() for file in FILES)
    for words in ("promised", "measured", "bits per byte", "proven optimal", "report.html", "blockwright generate"):
        assert words in printed
    assert not list(folder.glob(".*-*")), "unfinished work is left"
    plan, measured = read_plan(folder / "plan.json"), read_measured(folder / "measured.json")
    promised = {p.load: p for p in plan.promises if p.quantity == "parameters"}["chat"]
    assert measured.cost("fp32", "parameters", "chat").child.value == promised.child.value
    assert promised.child.value <= 0.8 * promised.parent.value
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="https?:', page), "the page needs a network"
    assert page.count("<svg") == 2


def test_a_finished_run_does_nothing_again(small_run: Path, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: (again / file).stat().st_mtime_ns for file in FILES if file not in ("recipe.yaml", "report.html")}
    assert main(["run", str(small_run / "recipe.yaml"), "--out", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "optimal"
    assert before == {file: (again / file).stat().st_mtime_ns for file in before}, "a finished stage ran again"


def test_a_change_of_the_recipe_runs_again_what_depends_on_it_and_nothing_else(
    again: Path, write_recipe: Callable[..., Path]
) -> None:
    before = json.loads((again / "manifest.json").read_text())
    assert main(["run", str(write_recipe(budgets=["parameters@chat <= 70%"])), "--out", str(again)]) == 0
    after = json.loads((again / "manifest.json").read_text())
    changed = {name for name in after if after[name] != before[name]}
    assert {"search", "realise", "distill", "compile-child-fp32", "measure"} <= changed
    assert not changed & {"profile", "library", "score", "compile-parent-fp32"}


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_with_the_same_plan_and_child(
    small_run: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    whole, killed = small_run / "run", tmp_path / "killed"
    command = ["run", str(write_recipe()), "--profile", str(whole / "profile"), "--out", str(killed)]
    # Unfinished work of a stage by its files; the run is killed as soon as one appears.
    for sign in (
        ".library-*/calibration.safetensors",
        ".library-*/layer-00-*",
        ".score-*",
        "plan.json",
        ".distill-*",
        "child/config.json",
    ):
        _run_until(command, killed, sign)
    assert main(command) == 0
    assert (killed / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    weights, expected = (load_file(folder / "child/model.safetensors") for folder in (killed, whole))
    assert weights.keys() == expected.keys()
    assert all((weights[name] == expected[name]).all() for name in weights)


@pytest.mark.slow
def test_a_profile_killed_half_way_keeps_what_it_measured(
    tmp_path: Path, small_parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "profile"
    command = ["profile", "--for", str(small_parent), "--seconds", "0.02", "--out", str(output)]
    command += ["--load", "chat=1x16+16", "--time-limit", "1"]
    _run_until(command, tmp_path, ".profile-*/case-0000-*.json")  # parts of a point are kept together
    before = {path.name for path in tmp_path.glob(".profile-*/case-*.json")}
    written: list[Path] = []

    def write(path: Path, data: object) -> None:
        written.append(path)
        write_json(path, data)

    monkeypatch.setattr("blockwright.pipeline.measuring.write_json", write)
    assert main(command) == 0
    assert before and not before & {path.name for path in written}, "what was measured is measured again"
    assert written
    assert read_profile(output).coverage.status == "complete"


@pytest.mark.slow
@pytest.mark.skipif(
    not DATA.exists(), reason="no real checkpoints: neither in BLOCKWRIGHT_DATA nor in shared/data beside the checkout"
)
def test_the_recipe_runs_on_a_parent_made_by_others(
    tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    models = [folder for folder in (DATA / "models").iterdir() if (folder / "model.safetensors").exists()]
    parent = min(models, key=lambda folder: (folder / "model.safetensors").stat().st_size)
    recipe = write_recipe(
        window_tokens=128,
        loads={"chat": {"batch": 1, "prompt_tokens": 32, "new_tokens": 32}},
        budgets=["memory@chat <= 95%", "parameters@chat <= 80%"],
        library={"tokens": 4096, "batch_windows": 4, "learning_rate": 2e-3},
        distill={"tokens": 16384, "batch_windows": 4, "learning_rate": 1e-3, "cosine_weight": 1.0},
        measure={"tokens": 4096, "seconds": 0.1, "prompts": ["Once upon"], "new_tokens": 16, "temperature": 0.0},
    )
    text, folder = DATA / "text" / "tinystories", tmp_path / "run"
    flags = ["--parent", str(parent), "--text", str(text), "--out", str(folder)]
    assert main(["run", str(recipe), *flags]) == 0
    measured = read_measured(folder / "measured.json")
    assert measured.distilled.kl.high < measured.realised.kl.low, "distillation did not help"
    assert measured.cost("fp32", "memory", "chat").child.value < measured.cost("fp32", "memory", "chat").parent.value
    assert "proven optimal" in capsys.readouterr().out


def _run_until(command: list[str], folder: Path, sign: str) -> None:
    """Runs a command and kills it, its children too, when a file that matches `sign` appears."""
    process = fork_command(*command)
    deadline = time.monotonic() + 120
    while not (found := any(folder.glob(sign))) and process.is_running and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    _, told = process.wait()
    assert found, f"no {sign} appeared, and the run said:\n{told[-4000:]}"


@pytest.mark.slow
def test_a_budget_on_an_int4_engine_runs_to_its_report_and_the_report_is_of_one_plan_only(
    tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    space = {"kv_head_shares": [], "ffn_width_shares": [0.5], "has_linear": False}
    recipe = write_recipe(engine={"formats": ["int4"], "threads": 1}, space=space)
    assert main(["run", str(recipe), "--out", str(folder)]) == 0
    assert json.loads((folder / "plan.json").read_text())["format"].startswith("int4")
    plan = read_plan(folder / "plan.json")
    write_plan(replace(plan, child=plan.parent), folder / "plan.json")
    assert main(["report", str(folder)]) == 2
    assert "another plan" in capsys.readouterr().err
