"""What compile replaces: what it wrote for the same target, and nothing that is somebody else's."""

from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.compile.engine import ENGINE_FILE
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
    (out / ".left.by.a.killed.writer").touch()
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
