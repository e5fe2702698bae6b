"""The compile stage for other engines, from the command line."""

import sys
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.compile.export import read_export
from blockwright.errors import InputError
from blockwright.pipeline.compile import export_checkpoint


def test_the_same_export_is_not_written_twice(small_parent: Path, tmp_path: Path) -> None:
    def write(weights: str) -> int:
        export = export_checkpoint(str(small_parent), "vllm", weights, tmp_path / "out")
        assert (export.format, export.target) == (weights, "vllm")
        return (tmp_path / "out" / "export.json").stat().st_ino

    first, again = write("fp16"), write("fp16")
    assert first == again != write("fp32")
    (tmp_path / "out" / "model.safetensors").unlink()
    write("fp32")
    assert read_export(tmp_path / "out").format == "fp32"


def test_the_command_line_writes_gguf(small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="GGUF files are written by the package gguf (the extra gguf)")
    words = ["compile", str(small_parent), "--target", "llama.cpp", "--format", "int4", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "int4-g32 for llama.cpp" in told and "scales in fp16" in told
    assert (tmp_path / "out" / "model.gguf").stat().st_size == read_export(tmp_path / "out").files["model.gguf"]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--target", "vllm", "--threads", "2"], "--threads"),
        (["--target", "llama.cpp", "--context", "32"], "--context"),
        (["--target", "llama.cpp", "--format", "bf16"], "--target llama.cpp"),
        (["--target", "tensorrt-llm", "--format", "int4"], "--target tensorrt-llm"),
        (["--target", "vllm", "--format", "int3"], "format"),
    ],
)
def test_what_a_target_does_not_take_is_refused_by_name(
    words: list[str], field: str, small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(small_parent), *words, "--out", str(tmp_path / "out")]) == 2
    assert f"error in {field}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_gguf_without_its_package_names_the_extra(
    small_parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"blockwright\[gguf\]"):
        export_checkpoint(str(small_parent), "llama.cpp", "fp32", tmp_path / "out")
    assert not (tmp_path / "out").exists()
