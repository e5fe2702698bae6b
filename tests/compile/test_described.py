"""Folders that hold no engine, or another's, are told for what they are."""

import json
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.compile.described import ENGINE_FILE, EXPORT_FILE, engine_target, read_description
from blockwright.errors import InputError


def _write(folder: Path, **data: object) -> Path:
    (folder / ENGINE_FILE).write_text(json.dumps(data))
    return folder


def test_an_engine_says_who_runs_it(tmp_path: Path) -> None:
    data = {"schema_version": 1, "target": "tensorrt", "package": "tensorrt_rtx"}
    assert engine_target(_write(tmp_path, **data)) == "tensorrt"
    assert read_description(tmp_path, "tensorrt") == data


@pytest.mark.parametrize(("built_for", "runs"), [("tensorrt", "onnxruntime"), ("onnxruntime", "tensorrt")])
def test_an_engine_for_somebody_else_is_refused_by_that_and_not_by_its_keys(
    built_for: str, runs: str, tmp_path: Path
) -> None:
    _write(tmp_path, schema_version=1, target=built_for, package="tensorrt_rtx")
    with pytest.raises(InputError, match=f"got an engine for {built_for}; expected one for {runs}") as found:
        read_description(tmp_path, runs)
    assert f"--target {runs}" in found.value.remedy


def test_an_engine_of_another_version_is_to_be_compiled_again(tmp_path: Path) -> None:
    _write(tmp_path, schema_version=2, target="onnxruntime")
    with pytest.raises(InputError, match=r"schema_version: got 2, written by another version.*Compile .* again"):
        engine_target(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "got", "remedy"),
    [
        ("model.gguf", "", "GGUF file model.gguf", "llama-cli -m"),
        (EXPORT_FILE, '{"target": "vllm"}', "written for vllm", "vllm runs it"),
        ("config.json", "{}", "a checkpoint", "blockwright compile"),
    ],
)
def test_what_others_run_is_named(file: str, text: str, got: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # an export to vLLM has one too
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=got) as found:
        engine_target(tmp_path)
    assert remedy in found.value.remedy


def test_a_folder_of_which_nothing_is_known_lacks_its_description(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"engine\.json: got No such file"):
        engine_target(tmp_path)


def test_a_description_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / ENGINE_FILE).write_text("[]")
    with pytest.raises(InputError, match="expected an engine's mapping"):
        engine_target(tmp_path)


@pytest.mark.parametrize(
    ("data", "got"), [({}, "no such key"), ({"target": "onnx"}, "'onnx'"), ({"target": []}, r"\[\]")]
)
def test_an_engine_that_does_not_say_who_runs_it_is_to_be_compiled_again(
    data: dict[str, object], got: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"json: target: got {got}; expected onnxruntime or tensorrt.*again"):
        engine_target(_write(tmp_path, **data))


def test_neither_command_that_asks_who_runs_an_engine_takes_nobody_for_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(_write(tmp_path))
    for words in (["generate", folder], ["measure", folder, "--against", folder]):
        assert main(words) == 2
        assert "engine.json: target\n  got       no such key" in capsys.readouterr().err
