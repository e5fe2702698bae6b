"""The command `predict` about times that were read in: what it can tell, what it cannot, and why."""

import json
from pathlib import Path

import pytest

from blockwright.cli.main import BAD_INPUT, main

DEMO = str(Path(__file__).parents[2] / "recipes" / "demo-parent")


def _imported(tmp_path: Path, name: str, *flags: str, into: str = "rtx_4090") -> str:
    times = tmp_path / f"{name}.json"
    record = {"startComputeMs": 5.0, "endComputeMs": 5.3, "computeMs": 0.3}
    times.write_text(json.dumps([record, record]))
    words = ["--for", DEMO, "--into", into, "--format", "bf16", "--load", "step=1x128+1", *flags]
    out = str(tmp_path / f"{name}-profile")
    assert main(["profile", "import", "trtexec", str(times), *words, "--out", out]) == 0
    return out


def _predict(profile: str, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    capsys.readouterr()
    words = ["--profile", profile, "--format", "bf16", "--backend", "tensorrt", *flags]
    code = main(["predict", "--parent", DEMO, *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_of_one_steps_time_no_request_can_be_told_and_that_is_said(
    json_flag: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = _imported(tmp_path, "step", "--context", "192")
    code, printed, told = _predict(step, capsys, "--load", "chat=1x128+128", *json_flag)
    told = " ".join(told.split())
    assert code == 0 and "request_latency" not in printed and "Request" not in printed
    for words in ("writing one token alone", "latency", "throughput", "energy", "Read in", "reading the prompt"):
        assert words in told
    assert not json_flag or json.loads(printed)


def test_of_a_prompt_alone_a_request_of_several_tokens_cannot_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = _imported(tmp_path, "prompt")
    _, _, told = _predict(prompt, capsys, "--load", "chat=1x128+128")
    assert "reading the prompt alone" in " ".join(told.split())
    _, _, told = _predict(prompt, capsys, "--load", "classify=1x128+1")
    assert told == ""


def test_with_both_nothing_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = _imported(tmp_path, "step", "--context", "192", into=_imported(tmp_path, "prompt"))
    code, printed, told = _predict(both, capsys, "--load", "chat=1x128+128")
    assert (code, told) == (0, "") and "Request latency" in printed


def test_a_load_far_from_what_was_read_in_needs_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = _imported(tmp_path, "step", "--context", "192", into=_imported(tmp_path, "prompt"))
    code, printed, told = _predict(both, capsys, "--load", "serve=64x128+128")
    assert code == BAD_INPUT and printed == "" and "batch 64" in told and "--extrapolate" in told
    assert _predict(both, capsys, "--load", "serve=64x128+128", "--extrapolate")[0] == 0


def test_without_times_of_tensorrt_both_ways_to_them_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--parent", DEMO, "--profile", "rtx_4090", "--backend", "tensorrt"]) == BAD_INPUT
    told = capsys.readouterr().err
    assert "blockwright profile --device cuda --backend tensorrt --for PARENT" in told
    assert "blockwright profile import trtexec RESULTS --for PARENT --into PROFILE" in told
    assert main(["predict", "--parent", DEMO, "--profile", "rtx_4090", "--backend", "llama.cpp"]) == BAD_INPUT
    told = capsys.readouterr().err
    assert "profile import llama-bench RESULTS" in told and "--device cuda" not in told


def test_without_a_format_tensorrt_is_told_of_in_fp16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = _imported(tmp_path, "half", "--format", "fp16")
    words = ["predict", "--parent", DEMO, "--profile", profile, "--backend", "tensorrt", "--load", "one=1x128+1"]
    capsys.readouterr()
    assert main(words) == 0
    unsaid = capsys.readouterr().out
    assert main([*words, "--format", "fp16"]) == 0
    assert capsys.readouterr().out == unsaid
    assert main([*words, "--format", "fp32"]) == BAD_INPUT
