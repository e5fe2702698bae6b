"""When a stage counts as done."""

import contextlib
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.files import read_json
from blockwright.pipeline.stage import Stage, read_manifest, running, whole


def _run(output: Path, **inputs: object) -> Stage:
    stage = Stage(name="search", output=output, inputs=inputs)
    with running(stage):
        output.write_text(str(inputs))
    return stage


def test_a_stage_with_the_same_inputs_and_output_is_done(tmp_path: Path) -> None:
    _run(tmp_path / "plan.json", budget=40)
    assert Stage(name="search", output=tmp_path / "plan.json", inputs={"budget": 40}).is_done()
    assert not Stage(name="search", output=tmp_path / "plan.json", inputs={"budget": 60}).is_done()


def test_another_output_of_the_same_stage_does_not_count_for_this_one(tmp_path: Path) -> None:
    _run(tmp_path / "a.json", budget=40)
    _run(tmp_path / "b.json", budget=60)
    assert not Stage(name="search", output=tmp_path / "a.json", inputs={"budget": 60}).is_done()


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_was_replaced_by_a_stage_that_then_failed_is_not_taken_for_what_stood_there(
    is_folder: bool, tmp_path: Path
) -> None:
    output = tmp_path / "plan"
    first, other = (Stage(name="search", output=output, inputs={"budget": budget}) for budget in (40, 60))
    with running(first):
        if is_folder:
            output.mkdir()
        (output / "plan.json" if is_folder else output).write_text("40")
    with pytest.raises(KeyboardInterrupt), running(other):
        assert not first.is_done() and not other.is_done(), "a kill here leaves one beside the other's output"
        raise KeyboardInterrupt
    assert first.is_done(), "its output still stands there"
    with pytest.raises(KeyboardInterrupt), running(other):
        (output / "plan.json" if is_folder else output).write_text("60")
        raise KeyboardInterrupt
    assert not first.is_done() and not other.is_done()


def test_a_stage_that_failed_spares_the_entry_of_its_other_output(tmp_path: Path) -> None:
    stage = _run(tmp_path / "a.json", budget=40)
    with pytest.raises(KeyboardInterrupt), running(Stage(name="search", output=tmp_path / "b.json", inputs={})):
        raise KeyboardInterrupt
    assert stage.is_done()


def test_a_stage_whose_output_is_gone_is_not_done(tmp_path: Path) -> None:
    stage = _run(tmp_path / "plan.json", budget=40)
    stage.output.unlink()
    assert not stage.is_done()


def test_unfinished_work_with_other_inputs_is_not_gone_on_with(tmp_path: Path) -> None:
    first = Stage(name="library", output=tmp_path / "library", inputs={"tokens": 1})
    try:
        with running(first) as work:
            (work / "half").touch()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert (first.work / "half").exists()
    with running(Stage(name="library", output=tmp_path / "library", inputs={"tokens": 2})) as work:
        assert not list(work.iterdir())
        assert (first.work / "half").exists(), "it may be the last good state"
    assert not first.work.exists()


def test_an_output_that_cannot_be_read_is_made_again(tmp_path: Path) -> None:
    stage = _run(tmp_path / "plan.json", budget=40)
    assert stage.reuse(lambda: "read") == "read"
    stage.output.write_text("broken")
    assert stage.reuse(lambda: read_json(stage.output)) is None


def test_a_stage_that_failed_before_it_did_anything_leaves_nothing(tmp_path: Path) -> None:
    stage = Stage(name="search", output=tmp_path / "plan.json", inputs={})
    with contextlib.suppress(ValueError), running(stage):
        raise ValueError
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize("content", ["[]", "{", '{"search": 7}', ""])
def test_a_broken_manifest_is_passed_over_with_a_warning(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert read_manifest(tmp_path) == {}
    assert "warning" in capsys.readouterr().err
    assert _run(tmp_path / "plan.json", budget=40).is_done()


def test_a_manifest_whose_entry_lacks_its_key_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"search": {}}')
    (tmp_path / "plan.json").touch()
    assert not Stage(name="search", output=tmp_path / "plan.json", inputs={}).is_done()


@pytest.mark.parametrize("output", ["in/scores", "in", "", "in/../in/scores", "link", "manifest.json"])
def test_an_output_that_would_replace_an_input_is_refused(output: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scores").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "in" / "scores")
    with pytest.raises(InputError, match="--out: got "):
        Stage(name="search", output=tmp_path / output, inputs={}, reads=whole(tmp_path / "in"))
    Stage(name="search", output=tmp_path / "in" / "plan", inputs={}, reads=whole(tmp_path / "in"))


def test_a_stage_does_not_replace_the_folder_it_is_started_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in (Path("."), tmp_path.parent):
        with pytest.raises(InputError, match="started in"):
            Stage(name="realise", output=output, inputs={})


def _folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("_json", ".json").replace("_txt", ".txt")).write_text(text)
    return path


@pytest.mark.parametrize("name", ["library", "realise", "distill", "compile-out", "profile", "profile-device"])
def test_a_folder_of_somebody_else_is_not_replaced(name: str, tmp_path: Path) -> None:
    output = _folder(tmp_path / "out", notes_txt="hi", config_json="{}", index_json="{}")
    with pytest.raises(InputError, match=r"config\.json, index\.json, notes\.txt"):
        Stage(name=name, output=output, inputs={})
    assert (output / "notes.txt").read_text() == "hi"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the file "):
        Stage(name=name, output=tmp_path / "file", inputs={})
    (tmp_path / "empty").mkdir()
    Stage(name=name, output=tmp_path / "empty", inputs={})


def test_a_folder_is_replaced_by_the_kind_of_stage_that_its_mark_tells(tmp_path: Path) -> None:
    outputs = {
        "library": _folder(tmp_path / "library", index_json='{"parent_folder": "cut sh'),
        "compile-new": _folder(tmp_path / "engine", engine_json='{"schema_version": 1}'),
        "compile-gguf": _folder(tmp_path / "gguf", export_json='{"schema_version": 1}'),
        "realise": _folder(tmp_path / "child", config_json='{"blockwright": {}}'),
        "profile-device": _folder(tmp_path / "profile", profile_json='{"schema_version": 2}'),
    }
    for name in outputs:
        for other, output in outputs.items():
            if name.partition("-")[0] == other.partition("-")[0]:
                Stage(name=name, output=output, inputs={})
            else:
                with pytest.raises(InputError, match="--out: got "):
                    Stage(name=name, output=output, inputs={})


def test_an_output_that_has_lost_its_mark_is_known_by_the_manifest(tmp_path: Path) -> None:
    stage = Stage(name="library", output=tmp_path / "library", inputs={})
    with running(stage):
        _folder(stage.output, weights="1")
    Stage(name="library", output=stage.output, inputs={"tokens": 2})
    with pytest.raises(InputError, match="--out: got "):
        Stage(name="realise", output=stage.output, inputs={})
