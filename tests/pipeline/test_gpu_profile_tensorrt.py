"""A whole profile of TensorRT's blocks, with ONNX Runtime in its place on the CPU; and what is refused before that."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile
from blockwright.llama import LLAMA_8B
from blockwright.pipeline import gpu_profile, gpu_runtimes
from blockwright.pipeline.gpu_profile import GpuOrder, profile_gpu
from blockwright.profiler.cost_model import known_quantities, predict
from blockwright.profiler.gpu_plan import QUICK, points_of
from blockwright.profiler.gpu_tensorrt import InOnnxRuntime
from blockwright.search.plan import read_plan
from blockwright.search.scores import ScoreTable, write_scores
from blockwright.spec import Attention, Format, GatedFFN, LinearMixer, Model, parse_format, with_format
from forked import fork_script
from tensorrt_simulated import memory_of, simulate, time_of

LOAD = Load(batch=1, prompt_tokens=8, new_tokens=8)
PLAN = replace(QUICK, num_variants=7, num_validated=2, load=LOAD)
FP16, INT4 = parse_format("fp16"), parse_format("int4-g32")
DEMO = Path(__file__).parents[2] / "recipes" / "demo-parent"


def _order(parent: Model, *formats: Format) -> GpuOrder:
    return GpuOrder(parent=parent, device="cpu", plan=PLAN, backend="tensorrt", formats=formats)


@pytest.fixture(scope="module")
def profiled(made_up_parent: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile in two formats, by a simulated clock."""
    folder = tmp_path_factory.mktemp("profiled") / "device"
    with pytest.MonkeyPatch.context() as monkeypatch:
        simulate(monkeypatch)
        profile_gpu(_order(made_up_parent, FP16, INT4), folder)
    return folder


def test_rows_are_of_tensorrt_in_each_format(profiled: Path) -> None:
    profile = read_profile(profiled)
    assert {row.backend for row in (*profile.times, *profile.wholes)} == {"tensorrt"}
    for text in ("fp16", "int4-g32"):
        parts = {(row.part, row.variant) for row in profile.times if row.format == text}
        assert {("mixer", "linear"), ("ffn", "linear"), ("mixer", "attention-kv4")} <= parts
        wholes = [row for row in profile.wholes if row.format == text]
        assert sum(row.is_anchor for row in wholes) == 2 * 3 and len(wholes) == 2 * 12
    assert [row.format for row in profile.memory].count("fp16") == len(profile.memory) / 2 == 12
    assert {row.backend for row in profile.memory} == {"tensorrt"}
    assert (profile.operators, profile.coverage.status) == ((), "complete")
    assert profile.software["tensorrt"] == "none: ONNX Runtime in its place"
    assert {(row.quantity, row.format, row.num_held_out) for row in profile.accuracy} == {
        (quantity, text, 2)
        for quantity in ("time_per_token", "time_to_first_token", "memory")
        for text in ("fp16", "int4-g32")
    }
    assert not profiled.with_name("device.work").exists()
    names = [case["name"] for case in json.loads(profiled.with_name("device.journal.json").read_text())["cases"]]
    assert len(set(names)) == len(names) and all("tensorrt" in name or "validation" in name for name in names)


@pytest.mark.parametrize("weights", [FP16, INT4])
def test_children_are_foretold_from_blocks_in_tensorrt(weights: Format, profiled: Path, made_up_parent: Model) -> None:
    profile = read_profile(profiled)
    quantities = known_quantities(profile, "tensorrt")
    assert {"time_per_token", "time_to_first_token", "memory", "disk"} <= set(quantities)
    first, *rest = made_up_parent.layers
    linear = replace(made_up_parent, layers=(replace(first, mixer=LinearMixer()), *rest))
    for each in (made_up_parent, linear):
        model = with_format(each, weights)
        costs = predict(profile, model, LOAD, "tensorrt")
        for quantity, is_prompt in (("time_per_token", False), ("time_to_first_token", True)):
            assert costs[quantity].value == pytest.approx(time_of(model, is_prompt), rel=5e-3)  # type: ignore[index]
        true = memory_of(model, points_of(LOAD)[0])
        assert costs["memory"].value == pytest.approx(true, rel=1e-6) and costs["memory"].low <= true + 1


@pytest.mark.parametrize("weights", [FP16, INT4])
def test_a_width_between_measured_ones_is_told(weights: Format, profiled: Path, made_up_parent: Model) -> None:
    profile = read_profile(profiled)
    widths = {row.variant for row in profile.times if row.part == "ffn"}
    ffn = GatedFFN(width=96)
    assert f"ffn-{ffn.width}" not in widths and len(widths) > 2
    model = replace(made_up_parent, layers=tuple(replace(b, ffn=ffn) for b in made_up_parent.layers))
    found = predict(profile, with_format(model, weights), LOAD, "tensorrt")["time_per_token"]
    assert found.low < time_of(with_format(model, weights), is_prompt=False) < found.high


def test_a_format_or_shape_that_was_not_measured_is_told(profiled: Path, made_up_parent: Model) -> None:
    profile = read_profile(profiled)
    with pytest.raises(InputError, match="bf16 on tensorrt"):
        predict(profile, with_format(made_up_parent, parse_format("bf16")), LOAD, "tensorrt")
    with pytest.raises(InputError, match="blocks of another shape"):
        predict(profile, with_format(replace(made_up_parent, hidden_size=128), FP16), LOAD, "tensorrt")


def test_the_search_and_predict_commands_use_it(
    profiled: Path, make_table: Callable[..., ScoreTable], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(make_table(), tmp_path / "scores.parquet")
    words = ["--profile", str(profiled), "--load", "chat=1x8+8", "--backend", "tensorrt"]
    budget = ["--scores", str(tmp_path / "scores.parquet"), "--budget", "parameters@chat <= 80%", "--frontier", "0"]
    out = tmp_path / "plan.json"
    assert main(["search", *words, *budget, "--out", str(out)]) == 0, capsys.readouterr().err
    plan = read_plan(out)
    assert (plan.backend, plan.format) == ("tensorrt", "fp16")
    capsys.readouterr()
    assert main(["predict", str(out), "--profile", str(profiled), "--json"]) == 0
    told = {record["quantity"] for record in json.loads(capsys.readouterr().out)}
    assert {"time_per_token", "time_to_first_token", "request_latency", "memory"} <= told


def test_a_profile_that_was_killed_goes_on_and_opens_nothing_twice(
    made_up_parent: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Model] = []
    real = InOnnxRuntime.open

    def count(self: InOnnxRuntime, kind: object, stored: object, point: object) -> object:
        opened.append(stored.model)  # type: ignore[attr-defined]
        if len(opened) == 11:
            raise KeyboardInterrupt
        return real(self, kind, stored, point)  # type: ignore[arg-type]

    monkeypatch.setattr(InOnnxRuntime, "open", count)
    with pytest.raises(KeyboardInterrupt):
        profile_gpu(_order(made_up_parent, FP16), tmp_path / "device")
    work = tmp_path / "device.work"
    kept = len(list(work.glob("step-*.json")))
    assert kept > 3 and not (work / "engine").exists()
    with pytest.raises(InputError, match="another order"):
        profile_gpu(_order(made_up_parent, INT4), tmp_path / "device")
    with pytest.raises(InputError, match="another order"):
        profile_gpu(replace(_order(made_up_parent), backend="torch"), tmp_path / "device")
    before = len(opened)
    assert profile_gpu(_order(made_up_parent, FP16), tmp_path / "device").coverage.status == "complete"
    rest = len(opened) - before
    profile_gpu(_order(made_up_parent, FP16), tmp_path / "again")
    assert rest < len(opened) - before - rest == rest + 10, "ten were opened before the kill, one of them in vain"


def test_what_does_not_build_is_listed_and_the_rest_is_measured(
    made_up_parent: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = InOnnxRuntime.open

    def refuse(self: InOnnxRuntime, kind: object, stored: object, point: object) -> object:
        parts = [part for block in stored.model.layers for part in (block.mixer, block.ffn)]  # type: ignore[attr-defined]
        if kind == "stack" and any(isinstance(part, Attention) for part in parts):
            raise InputError("build", got="no kernel\nfor it", expected="a plan", remedy="None.")
        return real(self, kind, stored, point)  # type: ignore[arg-type]

    monkeypatch.setattr(InOnnxRuntime, "open", refuse)
    profile = profile_gpu(_order(made_up_parent, FP16), tmp_path / "device")
    assert profile.coverage.status == "partial"
    failed = [why.removeprefix("again: ") for why in profile.coverage.failures]
    assert failed and all(why.startswith("tensorrt fp16 mixer attention-kv") for why in failed)
    assert all("build: got no kernel" in why for why in failed)
    assert {row.part for row in profile.times if row.variant != "linear"} == {"ffn"}


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that the driver and torch know, so far as is asked before anything is measured."""
    identity = gpu_profile.identify("cpu")
    monkeypatch.setattr(gpu_profile, "identify", lambda _: identity)
    monkeypatch.setattr(gpu_runtimes, "gpu_capability", lambda: "sm90")
    yield


def _command(out: Path, *words: str) -> list[str]:
    return ["profile", "--device", "cuda", "--for", str(DEMO), "--backend", "tensorrt", *words, "--out", str(out)]


def test_without_tensorrt_nothing_is_begun(
    a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert main(_command(tmp_path / "device")) == BAD_INPUT
    told = " ".join(capsys.readouterr().err.split())
    assert "no TensorRT" in told and "blockwright[tensorrt]" in told
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_the_installed_tensorrt_does_not_build_for_is_refused(
    a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(_command(tmp_path / "device", "--format", "int4")) == BAD_INPUT
    told = " ".join(capsys.readouterr().err.split())
    assert "sm90" in told and "TensorRT-RTX" in told
    assert not list(tmp_path.iterdir())


def test_groups_that_no_block_is_made_of_are_refused(a_gpu: None, made_up_parent: Model, tmp_path: Path) -> None:
    odd = replace(made_up_parent, layers=tuple(replace(b, ffn=GatedFFN(width=100)) for b in made_up_parent.layers))
    with pytest.raises(InputError, match="no whole number of groups"):
        profile_gpu(_order(odd, INT4), tmp_path / "device")
    assert not list(tmp_path.iterdir())


def test_tensorrt_is_measured_on_a_gpu_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "--for", str(DEMO), "--backend", "tensorrt", "--out", str(tmp_path / "device")]
    assert main(words) == BAD_INPUT
    assert "--device cuda" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_tries_it_out_without_a_gpu(tmp_path: Path) -> None:
    out, script = tmp_path / "device", DEMO.parents[1] / "benchmarks" / "gpu" / "profile_gpu.py"
    words = ("--parent", str(DEMO), "--device", "cpu", "--quick", "--backend", "tensorrt", "--format", "int4")
    code, told = fork_script(script, "--out", out, *words).wait()
    assert code == 0, told
    assert {(row.backend, row.format) for row in read_profile(out).times} == {("tensorrt", "int4-g32")}


def test_torch_is_refused_a_format_that_it_is_not_measured_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--backend tensorrt"):
        profile_gpu(replace(_order(LLAMA_8B, FP16), backend="torch"), tmp_path / "device")
    assert not list(tmp_path.iterdir())
