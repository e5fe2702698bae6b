"""Bad input: one clear error, exit code 2, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from blockwright.cli.main import main
from blockwright.hw_profiles.folder import read_profile, write_profile
from blockwright.search.plan import read_plan, write_plan
from forked import fork_command


def test_a_budget_that_nothing_can_meet_is_refused_before_anything_is_trained(
    tmp_path: Path, small_run: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run / "run" / "profile", folder / "profile")
    measured = json.loads((small_run / "run" / "manifest.json").read_text())["profile"]
    (folder / "manifest.json").write_text(json.dumps({"profile": measured}))
    message = refused("run", write_recipe(budgets=["parameters@chat <= 1K"]), "-o", folder)
    assert "parameters@chat <= 1K" in message and "the least that any child costs" in message
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "manifest.json",
        "profile",
        "recipe.yaml",
    ]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("speed@chat <= 1ms", "'speed'"),
        ("memory@talk <= 1GB", "'talk'"),
        ("memory@chat <= 1ms", "ms"),
        ("memory@chat = 1GB", "quantity[@[device:]load] <= amount"),
        ("memory@chat < 1GB", "quantity[@[device:]load] <= amount"),
        ("time_per_token@chat <= 5", "time_per_token"),
    ],
)
def test_a_budget_that_is_none(
    budget: str, words: str, tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    assert words in refused("run", write_recipe(budgets=[budget]), "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_an_unknown_key(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    message = refused("run", write_recipe(libary={}), "-o", tmp_path / "run")
    assert "libary" in message and "library" in message
    nested = yaml.safe_load(write_recipe().read_text())
    nested["library"]["learning_rat"] = 1.0
    assert "library.learning_rat" in refused("run", write_recipe(library=nested["library"]), "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"library": {"tokens": "many", "batch_windows": 4, "learning_rate": 1e-3}}, "library.tokens"),
        ({"loads": {"chat": {"batch": 0, "prompt_tokens": 1, "new_tokens": 1}}}, "loads.chat"),
        ({"loads": {"chat": {"batch": 1, "prompt_tokens": 60, "new_tokens": 60}}}, "the parent's context of 64"),
        ({"loads": {"chat": {"batch": 1, "prompt_tokens": 10**25, "new_tokens": 1}}}, "loads.chat"),
        ({"window_tokens": 65}, "window_tokens"),
        ({"text": "no-such-folder"}, "no-such-folder"),
        ({"engine": {"formats": ["int3"], "threads": 1}}, "int3"),
        ({"engine": {"formats": ["bf16"], "threads": 1}}, "engine.formats"),
        ({"engine": {"formats": [], "threads": 1}}, "engine.formats"),
        ({"window_tokens": 0}, "window_tokens"),
        ({"score": {"tokens": 31}}, "score.tokens"),
    ],
)
def test_a_recipe_with_a_value_that_does_not_fit(
    changes: dict, words: str, tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    assert words in refused("run", write_recipe(**changes), "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_shorter_than_one_window(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    text = tmp_path / "short"
    text.mkdir()
    for index in range(40):
        (text / f"{index}.txt").write_text(f"a{index}")  # the content decides what is held out
    message = refused("run", write_recipe(text=str(text)), "-o", tmp_path / "run")
    assert "at least one window of 32 tokens" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("largest_file_bytes", [1_000, 60_000])
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_later(
    largest_file_bytes: int, tmp_path: Path, small_run: Path, write_recipe: Callable[..., Path]
) -> None:
    folder = tmp_path / "run"
    command = ["run", str(write_recipe()), "--profile", str(small_run / "run" / "profile"), "-o", str(folder)]
    code, told = fork_command(*command, file_bytes=largest_file_bytes).wait()
    assert code == 2, told
    assert told.count("blockwright: error in ") == 1 and "Traceback" not in told
    assert "Run the same command again" in told or "run the same command again" in told
    written = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    manifest = folder / "manifest.json"
    stages = json.loads(manifest.read_text()) if manifest.exists() else {}
    assert written - {"recipe.yaml", "manifest.json"} == {stage["output"] for stage in stages.values()}
    assert main(command) == 0


def test_a_run_folder_that_cannot_be_written(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    # Permissions do not hold root back; the kernel's own folder does.
    folder = Path("/sys/run") if os.geteuid() == 0 else locked / "run"
    message = refused("run", write_recipe(), "-o", folder)
    assert str(folder) in message and "--out" in message


def test_a_run_folder_that_is_a_file(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert str(tmp_path / "file") in refused("run", write_recipe(), "-o", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_profile_of_another_machine(
    tmp_path: Path, small_run: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    folder, other = small_run / "run", tmp_path / "other"
    profile = read_profile(folder / "profile")
    write_profile(replace(profile, device=replace(profile.device, model="Another CPU")), other)
    message = refused("run", write_recipe(), "--profile", other, "--out", tmp_path / "again")
    assert "Another CPU" in message and profile.device.model in message
    assert not (tmp_path / "again" / "library").exists()

    plan = tmp_path / "plan.json"
    write_plan(replace(read_plan(folder / "plan.json"), profile="another-machine"), plan)
    engines = folder / "engine" / "onnxruntime"
    message = refused("measure", engines / "child-fp32", "--against", engines / "parent-fp32", "--plan", plan)
    assert "another-machine" in message


def test_two_runs_in_one_folder_at_once(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    program = f"""
from pathlib import Path
from blockwright.pipeline.lock import locked
with locked(Path({str(folder)!r})):
    print("locked", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdin is not None
    assert other.stdout.readline() == "locked\n"
    try:
        assert "a whole run at work here" in refused("run", write_recipe(), "-o", folder)
    finally:
        other.communicate("\n")
    assert not (folder / "recipe.yaml").exists()


def test_broken_files_between_stages_are_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    missing = tmp_path / "missing"
    for command in (
        ("search", "--scores", missing, "--profile", missing, "--budget", "memory <= 1GB"),
        ("realise", missing, "--library", missing),
        ("score", missing, "--text", "python"),
        ("generate", missing),
        ("measure", missing, "--against", missing),
        ("report", missing),
        ("distill", missing, "--teacher", missing, "--text", "python"),
    ):
        assert "missing" in refused(*command)


def test_a_prompt_that_leaves_no_room_to_write(
    refused: Callable[..., str], tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    recipe = yaml.safe_load(write_recipe().read_text())
    long = write_recipe(measure=recipe["measure"] | {"prompts": ["the cat " * 40]})
    message = refused("run", long, "--out", tmp_path / "run")
    assert "measure.prompts[0]" in message and "context of 64" in message


def test_text_of_a_single_window_gives_no_interval(
    tmp_path: Path, write_recipe: Callable[..., Path], refused: Callable[..., str]
) -> None:
    text = tmp_path / "short"
    text.mkdir()
    for index in range(40):
        (text / f"{index}.txt").write_text(f"the cat sat on mat {index} " * 4)
    message = refused("run", write_recipe(text=str(text), window_tokens=60), "-o", tmp_path / "run")
    assert "one window of 60 tokens" in message
    assert not (tmp_path / "run").exists()


def test_notes_in_the_folder_to_write_are_kept(tmp_path: Path, small_parent: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("hi")
    for command in (["compile", small_parent], ["library", small_parent, "--text", "python"], ["profile"]):
        message = refused(*command, "-o", tmp_path / "mine")
        assert "notes.txt" in message and "--out" in message
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["hi"]
