"""Files that are empty, of another program, or no profile: told by what they are, and what to give instead."""

from pathlib import Path

import pytest

from blockwright.cli.main import BAD_INPUT, main

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "recipes" / "demo-parent")
TRTEXEC = str(ROOT / "tests" / "profiler" / "imported" / "trtexec.json")
LLAMA = str(ROOT / "tests" / "profiler" / "imported" / "llama-bench.json")
IMPORT = ["--for", DEMO, "--into", "rtx_4090", "--load", "a=1x8+1", "--format", "bf16"]


def _told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == "" and all(word in captured.err for word in ("error in", "got", "expected", "remedy"))
    return captured.err


@pytest.mark.parametrize("source", ["llama-bench", "vllm", "trtexec"])
def test_an_empty_file_is_called_one(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = _told(capsys, "profile", "import", source, "/dev/null", *IMPORT, "--out", str(tmp_path / "out"))
    assert "/dev/null" in told and "an empty file" in told and "broken JSON" not in told


@pytest.mark.parametrize(
    ("file", "found"),
    [(f"{DEMO}/config.json", "the fields"), (TRTEXEC, "a list"), (LLAMA, "a list")],
)
def test_a_file_that_is_not_of_vllm_is_told_what_vllms_hold(
    file: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _told(capsys, "profile", "import", "vllm", file, *IMPORT, "--out", str(tmp_path / "out"))
    for words in (file, found, "avg_latency", "--save-result", "llama-bench or trtexec"):
        assert words in told


@pytest.mark.parametrize("content", ["3", "null", "{}", '"text"'])
def test_json_of_any_shape_is_refused_in_words(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.json").write_text(content)
    file = str(tmp_path / "odd.json")
    assert "JSON" in _told(capsys, "profile", "import", "vllm", file, *IMPORT, "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(("file", "found"), [("/dev/null", "an empty file"), (TRTEXEC, "a list")])
def test_a_file_that_is_no_profile_is_named_itself(file: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["profile", "show", file], ["predict", "--parent", DEMO, "--profile", file]):
        told = _told(capsys, *words)
        assert f"error in {file}\n" in told and found in told


def test_an_empty_plan_is_called_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").touch()
    assert "an empty file" in _told(capsys, "predict", str(tmp_path / "plan.json"), "--profile", "l4")


def test_no_device_has_none_cores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = _told(capsys, "profile", "validate", "l4")
    assert "None" not in told and "got       l4\n" in told
    assert main(["profile", "show", "l4"]) == 0
    assert "None" not in capsys.readouterr().out
