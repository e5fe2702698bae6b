"""What compile replaces: what it wrote for the same target, and nothing that is somebody else's."""

import shutil
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.compile.described import ENGINE_FILE, EXPORT_FILE
from tensorrt_here import needs_rtx


def _compile(parent: Path, out: Path, target: str = "onnxruntime", *flags: str) -> int:
    return main(["compile", str(parent), "--target", target, "--out", str(out), *flags])


def _stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize(("first", "second"), [("onnxruntime", "transformers"), ("transformers", "vllm")])
def test_what_was_compiled_for_another_target_stays(
    first: str, second: str, small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compile(small_parent, out, first) == 0
    before = _stamps(out)
    assert _compile(small_parent, out, second) == 2
    said = capsys.readouterr().err
    assert f"{out}, compiled for {first}" in said and f"one compiled for {second}" in said and "--out" in said
    assert _stamps(out) == before


@needs_rtx
def test_an_engine_of_onnx_runtime_is_not_replaced_by_one_of_tensorrt_nor_the_other_way(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for first, second in (("onnxruntime", "tensorrt"), ("tensorrt", "onnxruntime")):
        assert _compile(small_parent, tmp_path / first, first) == 0
        assert _compile(small_parent, tmp_path / first, second) == 2
        assert f"compiled for {first}" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["onnxruntime", "transformers"])
def test_the_same_target_in_another_format_is_replaced_and_the_same_twice_is_not(
    target: str, small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compile(small_parent, out, target) == 0
    assert "unchanged" not in capsys.readouterr().err
    before = _stamps(out)
    assert _compile(small_parent, out, target) == 0
    assert "unchanged" in capsys.readouterr().err and _stamps(out) == before
    assert _compile(small_parent, out, target, "--format", "fp16") == 0
    assert _stamps(out) != before


@pytest.mark.parametrize("target", ["onnxruntime", "transformers"])
def test_files_of_others_are_not_removed_with_what_is_replaced(
    target: str, small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compile(small_parent, out, target) == 0
    (out / "notes.txt").write_text("mine")
    (out / ".git").mkdir()
    (out / ".DS_Store").touch()
    (out / ".tokenizer.json.0a1b2c3d").touch()  # as a killed writer does
    assert _compile(small_parent, out, target) == 0, "what is up to date is not replaced"
    assert _compile(small_parent, out, target, "--format", "fp16") == 2
    assert "with .git, notes.txt, not written by compile" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    (out / ".git").rmdir()
    assert _compile(small_parent, out, target, "--format", "fp16") == 0


def test_an_engine_that_is_broken_is_made_again(small_parent: Path, tmp_path: Path) -> None:
    assert _compile(small_parent, tmp_path / "out") == 0
    whole = (tmp_path / "out" / ENGINE_FILE).read_text()
    for broken in ('{"schema_version": 1,', '"schema_version"', '{"schema_version": 1}'):
        (tmp_path / "out" / ENGINE_FILE).write_text(broken)
        assert _compile(small_parent, tmp_path / "out") == 0
        assert (tmp_path / "out" / ENGINE_FILE).read_text() == whole


@pytest.mark.parametrize("name", ["notes.txt", ".env", ".model.onnx.original", "timing.cache/mine"])
@pytest.mark.parametrize("broken", ['{"schema_version": 1,', '["schema_version"]', '{"schema_version": 1}', "", None])
def test_files_of_others_beside_a_broken_engine_are_not_removed(
    name: str, broken: str | None, tmp_path: Path, small_parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compile(small_parent, out) == 0
    if broken is None:
        (out / ENGINE_FILE).unlink()
    else:
        (out / ENGINE_FILE).write_text(broken)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    assert _compile(small_parent, out) == 2
    said = capsys.readouterr().err
    assert "--out" in said and name.split("/")[0] in said
    assert (out / name).read_text() == "mine"


def test_an_engine_whose_description_was_removed_is_made_again(small_parent: Path, tmp_path: Path) -> None:
    assert _compile(small_parent, tmp_path / "out") == 0
    (tmp_path / "out" / ENGINE_FILE).unlink()
    assert _compile(small_parent, tmp_path / "out") == 0
    assert (tmp_path / "out" / ENGINE_FILE).is_file()


@pytest.mark.parametrize("broken", ['{"schema_version": 1,', '["schema_version"]', None])
def test_an_export_that_does_not_say_what_it_is_stays(
    broken: str | None, small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compile(small_parent, out, "transformers") == 0
    if broken is None:
        (out / EXPORT_FILE).unlink()
    else:
        (out / EXPORT_FILE).write_text(broken)
    before = _stamps(out)
    assert _compile(small_parent, out, "transformers") == 2
    assert f"{out}, w" in capsys.readouterr().err and _stamps(out) == before


def test_a_file_where_an_engine_stood_stays(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compile(small_parent, out) == 0
    shutil.rmtree(out)
    out.write_text("mine")
    assert _compile(small_parent, out) == 2
    assert f"the file {out}" in capsys.readouterr().err and out.read_text() == "mine"


def test_a_kit_replaces_a_kit_and_no_other_file(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = tmp_path / "kit.zip"
    kit.touch()
    for _ in range(2):
        assert _compile(small_parent, kit, "tensorrt", "--kit") == 0
    other = tmp_path / "photos.zip"
    other.write_text("photos")
    assert _compile(small_parent, other, "tensorrt", "--kit") == 2
    assert "photos.zip, a file that is no kit" in capsys.readouterr().err and other.read_text() == "photos"
