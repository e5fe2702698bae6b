"""Plans of stacks and of whole models, built by TensorRT-RTX, and those that do not build."""

from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.compile.tensorrt_build import BuildRequest, Built, build_apart
from blockwright.compile.tensorrt_engine import PLAN_FILE
from blockwright.compile.tensorrt_package import Package, find_package
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.errors import InputError
from blockwright.profiler import gpu_tensorrt
from blockwright.profiler.gpu_bench import measure_part
from blockwright.profiler.gpu_sitting import Step, run_steps
from blockwright.profiler.gpu_tensorrt import InPlans, TensorRtRuntime
from blockwright.spec import (
    FFN,
    FP16,
    GatedFFN,
    Mixer,
    parse_format,
    variant_name,
    with_format,
)
from tensorrt_stacks import DECODE, PARENT, VARIANTS, bench_of, stack_of


@pytest.fixture(scope="module")
def package() -> Package:
    try:
        return find_package(("tensorrt_rtx",))
    except InputError as absent:
        pytest.skip(f"TensorRT-RTX is needed (the extra tensorrt-rtx): {absent.got}")


@pytest.fixture
def plans(package: Package, tmp_path: Path) -> InPlans:
    return InPlans(package=package, capabilities=("sm86", "sm89", "sm120"), folder=tmp_path / "engine")


@pytest.mark.parametrize("text", ["fp16", "int4-g32"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_every_stack_parses_and_builds(variant: Mixer | FFN, text: str, plans: InPlans, tmp_path: Path) -> None:
    """Counts of attentions, caches and integer matrices are checked by the build; a difference would raise."""
    stored = stored_for_tensorrt(stack_of(variant, copies=4), parse_format(text))
    plan = plans.build("stack", stored, DECODE, tmp_path)
    assert plan.name == PLAN_FILE and plan.stat().st_size > 0


@pytest.mark.parametrize("text", ["bf16", "int4-g128"])
def test_whole_models_build_with_all_that_is_in_them(text: str, plans: InPlans, tmp_path: Path) -> None:
    stored = stored_for_tensorrt(PARENT, parse_format(text))
    assert plans.build("whole", stored, DECODE, tmp_path).stat().st_size > 0


def test_a_plan_is_built_for_as_many_sequences_as_its_load_has(
    plans: InPlans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[BuildRequest] = []

    def keep(request: BuildRequest, package: Package) -> Built:
        requests.append(request)
        return build_apart(request, package)

    monkeypatch.setattr(gpu_tensorrt, "build_apart", keep)
    plans.build("stack", stored_for_tensorrt(stack_of(VARIANTS[0]), FP16), replace(DECODE, batch=3), tmp_path)
    (request,) = requests
    assert request.most_sequences == 3


def test_a_network_that_does_not_build_fails_as_a_case_and_the_next_goes_on(plans: InPlans, tmp_path: Path) -> None:
    """TensorRT-RTX has no int4 before sm80, and says so itself."""
    runtime = TensorRtRuntime(parse_format("int4"), replace(plans, capabilities=("sm75",)))
    model = with_format(stack_of(VARIANTS[0]), runtime.weights)

    def measure() -> list:
        runtime.open_stack(model, [DECODE])
        return []

    steps = [Step(name="attention", measure=measure), Step(name="after it", measure=list)]
    released: list[str] = []
    first, second = run_steps(steps, tmp_path / "work", lambda: 1.0, lambda _: None, lambda: released.append("all"))
    assert first.error is not None and "Cannot compile for target(s) sm75" in first.error
    assert (second.error, released) == (None, ["all"])
    assert not (tmp_path / "engine").exists(), "nothing is left of it"


def test_a_build_that_the_system_ends_for_want_of_memory_fails_as_a_case(
    plans: InPlans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shot = tmp_path / "python"
    shot.write_text("#!/bin/sh\nkill -KILL $$\n")
    shot.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(shot))
    runtime = TensorRtRuntime(parse_format("fp16"), plans)
    step = Step(name="ffn", measure=lambda: measure_part(bench_of(runtime), GatedFFN(width=96, weights=FP16), [DECODE]))
    (done,) = run_steps([step], tmp_path / "work", lambda: 1.0, lambda _: None, lambda: None)
    assert done.error is not None and "SIGKILL" in done.error and "Give it more memory" in done.error
    assert not (tmp_path / "engine").exists()
