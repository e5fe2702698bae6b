"""benchmarks/gpu/tensorrt_gpu.py as far as it goes without a GPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.session import Decoder
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import parse_format, with_format
from tensorrt_here import needs_rtx

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/tensorrt_gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("tensorrt_gpu")


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU opens the plan")
def test_without_a_gpu_the_tiny_plan_is_built_and_listed_as_not_opened(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--for", "sm86", "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "1 of 1 did not come to an end" in done.stderr
    (page,), (file,) = (list(tmp_path.glob(f"tensorrt_no-gpu_*.{kind}")) for kind in ("md", "json"))
    assert "says nothing of one" in page.read_text() and "builds for sm86: built; then GPU: got" in page.read_text()
    (row,) = json.loads(file.read_text())["rows"]
    assert all(row["built"][name]["plan_bytes"] > row["built"][name]["weight_bytes"] for name in ("parent", "child"))
    assert "opened" not in row and "races" not in row


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_the_script_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 1 and "--for sm86 tries the script out" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("format_name", "plan_name"), [("fp16", "SMALL"), ("int4-g64", "SMALL"), ("fp16", "_PROBE")])
def test_logits_are_held_against_torch_and_engines_raced(
    script: Any, format_name: str, plan_name: str, tmp_path: Path
) -> None:
    """ONNX Runtime stands in for TensorRT."""
    plan = getattr(script, plan_name)
    decoders, found = {}, {}
    for name, model in (("parent", script.parent_of(plan)), ("child", script.child_of(plan))):
        order = EngineOrder(
            model=model,
            weights_format=parse_format(format_name),
            num_positions=model.max_positions,
            session=SessionSettings(num_threads=1, accuracy_level=0),
            built_from="random weights",
        )
        weights = random_weights(model, seed=1)
        (tmp_path / name).mkdir()
        write_engine(order, weights, tmp_path / name)
        decoders[name] = Decoder.open(tmp_path / name)
        stored = with_format(model, parse_format(format_name))
        found[name] = script.difference(decoders[name], script.reference_of(stored, weights), plan)
        other = script.reference_of(stored, random_weights(model, seed=2))
        assert script.difference(decoders[name], other, plan) > 10 * script.TOLERANCE
    assert max(found.values()) < script.TOLERANCE
    lengths = [(race["what"], race["tokens"]) for race in script.races(decoders, plan)]
    assert lengths == [*(("decode", context) for context in plan.contexts), ("prefill", plan.prompt)]


def test_a_chip_that_the_package_has_no_name_for_is_the_gpu_at_hand(script: Any) -> None:
    rtx = SimpleNamespace(
        name="tensorrt_rtx", trt=SimpleNamespace(ComputeCapability=SimpleNamespace(__members__={"SM86": 0}))
    )
    assert [script.named(rtx, each) for each in ("sm86", "sm90")] == ["sm86", "current"]
    assert script.named(SimpleNamespace(name="tensorrt"), "sm90") == "sm90"


def test_a_process_that_dies_is_told_with_how_far_it_came(script: Any) -> None:
    died = script.told({"built": {}}, -6, "first\nAssertion failed\n")
    assert died == {"built": {}, "why": "the process ended with signal SIGABRT: Assertion failed"}
    assert script.told({}, 3, "")["why"] == "the process ended with exit code 3: nothing said"
    assert script.told({"why": "GPU: none"}, 0, "") == {"why": "GPU: none"}
    assert script.told({"races": []}, 0, "a warning") == {"races": [], "why": None}


def test_formats_are_tried_where_the_tiny_plan_runs_only(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for why, formats in ((None, ["fp16", "fp16", "int4-g64"]), ("it aborts", ["fp16"])):
        tried: list[Any] = []

        def try_case(case: Any, tried: list[Any] = tried, why: str | None = why) -> dict[str, Any]:
            tried.append(case)
            return {"why": why}

        monkeypatch.setattr(script, "try_case", try_case)
        script.try_all("tensorrt_rtx", "sm90", False)
        assert [case.format for case in tried] == formats
        assert [case.is_probe for case in tried] == [True, False, False][: len(tried)]
        assert tried[-1].plan == (script.FULL if why is None else tried[0].plan)
