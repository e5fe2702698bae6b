"""The stage that measures a GPU, on the CPU: what it keeps where things went wrong, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockwright.cli.main import BAD_INPUT, main
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.gpu_state import GpuState
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline import gpu_profile
from blockwright.pipeline.gpu_profile import GpuOrder, profile_gpu
from blockwright.profiler import gpu_operators
from blockwright.profiler.gpu_device import CpuDevice
from blockwright.profiler.gpu_plan import QUICK
from blockwright.profiler.gpu_sitting import Step
from blockwright.spec import Model

PLAN = replace(QUICK, num_variants=5, num_validated=2, load=Load(batch=1, prompt_tokens=4, new_tokens=4))
DEMO = Path(__file__).parents[2] / "recipes" / "demo-parent"


class Throttled(CpuDevice):
    """Says from its hundredth look on that heat holds it down."""

    looks = 0

    def state(self) -> GpuState | None:
        Throttled.looks += 1
        throttles = ("thermal_hardware",) if Throttled.looks > 100 else ()
        return GpuState(sm_hz=1e9, celsius=90.0, used_bytes=0, throttles=throttles)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of an operator need not move 256 MiB where nobody believes its time."""
    monkeypatch.setattr(gpu_operators, "_LEAST_BYTES_PER_SAMPLE", 1)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes cases whose names begin so fail: `broken("memory")`."""

    def make(name: str) -> None:
        def fail() -> list:
            raise RuntimeError("CUDA out of memory.")

        def steps_of(*arguments: object) -> list[Step]:
            found = real(*arguments)  # type: ignore[arg-type]
            return [replace(step, measure=fail) if step.name.startswith(name) else step for step in found]

        real = gpu_profile.profile_steps
        monkeypatch.setattr(gpu_profile, "profile_steps", steps_of)

    return make


def _profile(parent: Model, out: Path) -> Profile:
    return profile_gpu(GpuOrder(parent=parent, device="cpu", plan=PLAN), out)


def test_what_failed_and_what_was_throttled_stands_in_the_profile(
    made_up_parent: Model, broken: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_profile, "CpuDevice", Throttled)
    monkeypatch.setattr(Throttled, "looks", 0)
    broken("ffn ffn-")
    _profile(made_up_parent, tmp_path / "device")
    profile = read_profile(tmp_path / "device")
    coverage = profile.coverage
    assert (coverage.status, coverage.failed) == ("partial", len(coverage.failures))
    assert coverage.done + coverage.failed == coverage.asked
    assert all(why.removeprefix("again: ").startswith("ffn ffn-") for why in coverage.failures) and coverage.failures
    assert all(why.endswith("CUDA out of memory.") for why in coverage.failures)
    assert {row.part for row in profile.times if row.variant != "linear"} == {"mixer"}
    hot = [mark for mark in coverage.marked if "thermal_hardware while it was measured" in mark]
    rows = len(profile.times) + len(profile.wholes) + len(profile.operators)
    assert 0 < len(hot) < rows and 0 < coverage.disturbed < coverage.done
    notes = json.loads((tmp_path / "device.journal.json").read_text())
    assert sum(case["error"] is not None for case in notes["cases"]) == coverage.failed
    assert len(notes["marked"]) == coverage.disturbed


def test_a_run_goes_on_and_measures_what_had_failed(
    made_up_parent: Model, broken: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken("operator")
    broken("matmul")
    first = _profile(made_up_parent, tmp_path / "device")
    with pytest.raises(InputError, match="another order"):
        _profile(replace(made_up_parent, vocab_size=97), tmp_path / "device")
    monkeypatch.undo()
    monkeypatch.setattr(gpu_operators, "_LEAST_BYTES_PER_SAMPLE", 1)
    again = _profile(made_up_parent, tmp_path / "device")
    assert (first.coverage.status, again.coverage.status) == ("partial", "complete")
    assert len(again.operators) == len(first.operators) + 1 and again.times == first.times
    assert {(row.phase, row.num_held_out) for row in again.accuracy} == {("decode", 2), ("prefill", 2)}


def test_a_whole_profile_leaves_nothing_to_go_on_with_and_is_measured_anew(
    made_up_parent: Model, broken: Callable[[str], None], tmp_path: Path
) -> None:
    assert _profile(made_up_parent, tmp_path / "device").coverage.status == "complete"
    assert not (tmp_path / "device.work").exists()
    broken("ffn ffn-")
    assert _profile(made_up_parent, tmp_path / "device").coverage.status == "partial", "it is measured, not read back"


def test_without_whole_models_a_profile_says_that_it_was_not_tried(
    made_up_parent: Model, broken: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken("whole")
    assert _profile(made_up_parent, tmp_path / "device").accuracy == ()
    assert "was not tried" in capsys.readouterr().err


def test_where_nothing_succeeds_there_is_no_profile(
    made_up_parent: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[str], None]
) -> None:
    broken("")
    monkeypatch.setattr(gpu_profile, "validation", lambda *_: ([], []))
    with pytest.raises(InputError, match="failed, the first by: CUDA out of memory"):
        _profile(made_up_parent, tmp_path / "device")
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("words", "field", "told"),
    [
        ([], "--device", "nvidia-smi names no GPU"),
        (["--for", DEMO], "--device", "nvidia-smi names no GPU"),
        (["--for", DEMO, "--threads", 2], "--threads", "with --device cuda"),
        (["--for", DEMO, "--backend", "onnxruntime"], "--backend", "onnxruntime with --device cuda"),
        (["--for", DEMO, "--backend", "torch", "--backend", "tensorrt"], "--backend", "torch and tensorrt"),
        (["--for", DEMO, "--format", "fp16"], "--format", "'fp16'"),
        (["--for", DEMO, "--backend", "tensorrt", "--format", "int8"], "--format", "'int8'"),
        (["--for", DEMO, "--backend", "tensorrt"], "--device", "nvidia-smi names no GPU"),
        (["--load", "a=1x16+16"], "--load", "without --for"),
        (["--for", DEMO, "--load", "a=1x16+16", "--load", "b=2x16+16"], "--load", "2 of them"),
        (["--for", DEMO, "--load", "a=1x4000+16"], "--load", "a prompt of 4000 tokens"),
    ],
)
def test_the_command_says_what_it_lacks(
    words: list[object],
    field: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu_profile, "nvidia_gpus", lambda: [])
    code = main(["profile", "--device", "cuda", *map(str, words), "--out", str(tmp_path / "device")])
    complaint = capsys.readouterr().err
    assert code == BAD_INPUT and f"error in {field}\n" in complaint and told in complaint and "remedy" in complaint
    assert not list(tmp_path.iterdir())


def test_a_driver_without_a_torch_that_can_use_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_profile, "nvidia_gpus", lambda: [gpu_profile.identify("cpu")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"torch {torch.__version__.split('+')[0]}.* finds none"):
        gpu_profile.identify("cuda")


def test_the_command_measures_the_parent_at_its_load(
    small_parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[GpuOrder] = []

    def measure(order: GpuOrder, output: Path) -> Profile:
        orders.append(order)
        assert output == tmp_path / "device"
        return read_profile("h200_sxm")

    monkeypatch.setattr(gpu_profile, "profile_gpu", measure)
    words = ["--for", str(small_parent), "--load", "a=4x64+32", "--out", str(tmp_path / "device")]
    assert main(["profile", "--device", "cuda", *words]) == 0
    (order,) = orders
    assert (order.device, order.parent.hidden_size, order.plan.load.batch, order.plan.load.prompt_tokens) == (
        *("cuda", 32),
        *(4, 64),
    )
    assert "None cores" not in capsys.readouterr().out
