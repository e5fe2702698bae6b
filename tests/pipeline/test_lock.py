"""Who may be at work in a folder beside whom, with another process that holds what is asked for."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile
from blockwright.llama import LLAMA_8B
from blockwright.pipeline import gpu_profile, imports, kit
from blockwright.pipeline.lock import locked
from blockwright.pipeline.stage import Stage, read_manifest, running
from blockwright.profiler.gpu_plan import QUICK
from blockwright.profiler.imports import Results, Told

_OTHER = """
import sys
from pathlib import Path
from blockwright.pipeline.lock import at_work, locked
folder, (name, *files) = Path(sys.argv[1]), sys.argv[2:]
files = [folder / each for each in files]
holds = locked(folder) if name == "run" else at_work(folder, name, files[0], files[1:])
with holds:
    print("in", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _another(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process at work in a folder, from within to the end of the block."""
    command = [sys.executable, "-c", _OTHER, str(folder), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        try:
            yield process
        finally:
            process.kill()


def _stage(folder: Path, name: str, output: str, *reads: str) -> Stage:
    return Stage(name=name, output=folder / output, inputs={}, reads=tuple(folder / each for each in reads))


def test_other_stages_run_side_by_side_and_both_stand_in_the_manifest(tmp_path: Path) -> None:
    with _another(tmp_path, "library", "library", "parent"):
        with running(_stage(tmp_path, "profile", "profile", "parent")):
            (tmp_path / "profile").touch()
        with running(_stage(tmp_path, "search", "plan.json")):
            (tmp_path / "plan.json").touch()
    assert set(read_manifest(tmp_path)) == {"profile", "search"}


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (("library", "library"), ("library", "other")),
        (("library", "library"), ("score", "scores", "library")),
        (("score", "scores", "library/index.json"), ("library", "library")),
        (("profile", "same"), ("profile-device", "same")),
        (("run",), ("profile", "profile")),
    ],
)
def test_who_holds_the_folder_is_named_and_what_to_do_holds(there: tuple, here: tuple, tmp_path: Path) -> None:
    with _another(tmp_path, *there) as process:
        with pytest.raises(InputError) as caught, running(_stage(tmp_path, *here)):
            raise AssertionError("entered")
        told = str(caught.value)
        name = "a whole run" if there == ("run",) else f"the stage {there[0]}"
        assert f"{name} at work here: process {process.pid}" in told
        assert "Wait" in caught.value.remedy and "in another folder" in caught.value.remedy
        with running(_stage(tmp_path / "another", *here)):
            pass
    with running(_stage(tmp_path, *here)):
        pass


def _import_kit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "read_kit_results", lambda _: read_profile("h200_sxm"))
    kit.take_in(folder / "results", folder / "profile")


def _import_times(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_read", lambda *_: Results(software={"llama.cpp": "1"}, times=()))
    files, into = ((folder / "bench.json", Told()),), read_profile("rtx_4090")
    order = imports.ImportOrder(source="llama-bench", parent=LLAMA_8B, into=into, files=files)
    imports.import_results(order, folder / "profile")


def _measure_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_profile.profile_gpu(gpu_profile.GpuOrder(parent=LLAMA_8B, device="cpu", plan=QUICK), folder / "profile")


@pytest.mark.parametrize("write", [_import_kit, _import_times, _measure_gpu])
@pytest.mark.parametrize("stage", ["profile", "search"])
def test_a_profile_is_not_replaced_while_it_is_made_or_read(
    write: Callable[[Path, pytest.MonkeyPatch], None], stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["profile"] if stage == "profile" else ["plan.json", "profile"]
    with _another(tmp_path, stage, *files), pytest.raises(InputError, match=f"the stage {stage} at work here"):
        write(tmp_path, monkeypatch)
    assert not (tmp_path / "profile").exists()


def test_a_run_does_not_enter_while_a_stage_is_at_work(tmp_path: Path) -> None:
    with _another(tmp_path, "library", "library") as process, pytest.raises(InputError) as caught, locked(tmp_path):
        raise AssertionError("entered")
    assert f"the stage library at work here: process {process.pid}" in str(caught.value)
    with locked(tmp_path), running(_stage(tmp_path, "library", "library")):
        pass


def test_what_a_killed_stage_left_stops_nobody(tmp_path: Path) -> None:
    with _another(tmp_path, "library", "library"):
        left = json.loads((tmp_path / ".lock-library.json").read_text())
    (tmp_path / ".lock-library.json").write_text(json.dumps(left))
    with running(_stage(tmp_path, "profile", "profile", "library")):
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", "manifest.json"}


def test_what_a_killed_process_of_our_number_left_is_not_ours(tmp_path: Path) -> None:
    with _another(tmp_path, "library", "library"):
        left = json.loads((tmp_path / ".lock-library.json").read_text())
        note = tmp_path / ".lock-library.json"
        note.write_text(json.dumps(left | {"process": os.getpid()}))
        with pytest.raises(InputError, match="the stage library at work here"), locked(tmp_path):
            raise AssertionError("entered")
    (tmp_path / ".lock.json").write_text(json.dumps(left | {"process": os.getpid(), "what": "a whole run"}))
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["token"] != left["token"]
    assert not (tmp_path / ".lock.json").exists() and not note.exists()


def test_stages_of_one_process_may_be_nested(tmp_path: Path) -> None:
    with running(_stage(tmp_path, "refine", "refined")), running(_stage(tmp_path, "search", "plan", "refined")):
        held = json.loads((tmp_path / ".lock-refine.json").read_text())
        assert held["process"] == os.getpid()


def test_a_stage_spares_the_unfinished_work_of_one_whose_name_begins_alike(tmp_path: Path) -> None:
    other = _stage(tmp_path, "profile-device", "device")
    other.work.mkdir()
    with running(_stage(tmp_path, "profile", "profile")):
        pass
    assert other.work.exists()
