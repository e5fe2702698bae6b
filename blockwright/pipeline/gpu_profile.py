"""Stage: measure an NVIDIA GPU: ceilings, operators, blocks and whole children of a parent, memory, power.

Blocks and children run in torch or in TensorRT, whose children are weighed while they are timed; operators are measured
of torch alone.

Beside the profile stand `FOLDER.journal.json`, how each measurement went and what held the clock down, and,
until all of it is measured, `FOLDER.work`, with which a run that was stopped goes on. The same code runs on the CPU
without a GPU, to try it out.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.conditions import Conditions, conditions_now
from blockwright.hw_profiles.device import Device, installed_software, this_device
from blockwright.hw_profiles.gpu import nvidia_gpus
from blockwright.hw_profiles.profile import SCHEMA_VERSION, MemoryRow, OperatorRow, Profile, TimeRow, WholeRow
from blockwright.hw_profiles.provenance import Coverage, Method
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.gpu_runtimes import Chosen, DeviceName, GpuBackend, choose_runtimes
from blockwright.pipeline.lock import at_work
from blockwright.pipeline.marks import write_marked
from blockwright.pipeline.stage import check_is_ours
from blockwright.profiler.gpu_bench import Bench
from blockwright.profiler.gpu_ceilings import GpuCeilings, measure_ceilings, reference_work
from blockwright.profiler.gpu_clock import OUTLIER_RULE, WARM_UP, GpuClock
from blockwright.profiler.gpu_device import CpuDevice, CudaDevice, TorchDevice
from blockwright.profiler.gpu_plan import Plan, estimate_s, points_of, profile_steps, validation
from blockwright.profiler.gpu_power import measure_powers, nvml_counter
from blockwright.profiler.gpu_sitting import (
    Done,
    Row,
    corrected_rows,
    drift_of,
    is_marked,
    marks_of_steps,
    open_work,
    run_steps,
    with_repeats,
)
from blockwright.profiler.gpu_tensorrt import with_integer_rates
from blockwright.profiler.gpu_validate import validate
from blockwright.spec import Format, Model, with_format
from blockwright.strict import from_data, to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOrder:
    """What to measure, and on what."""

    parent: Model
    device: DeviceName
    plan: Plan
    backend: GpuBackend = "torch"
    """Who runs blocks and children."""
    formats: tuple[Format, ...] = ()
    """Of layers; none for bf16 in torch, fp16 in TensorRT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """All that was measured: the profile's cases, then those that check it, then some of both once more."""

    ceilings: GpuCeilings
    power: dict[str, Figure]
    done: list[Done]
    rows: list[list[Row]]
    """Of each case, the drift divided out."""
    num_steps: int
    """Cases that the profile is made of."""
    num_once: int
    """Those and the ones that check it."""
    mixes: list[Model]
    """What the latter were, in their order."""
    started: str


def profile_gpu(order: GpuOrder, output: Path) -> Profile:
    """Measures everything that a plan asks for, and writes the profile and the journal.

    Raises:
        InputError: there is no GPU, or no TensorRT that builds for it where that was asked for; nothing could be
            measured on it, what was begun was of another order, or somebody is at work on the profile.
    """
    found = identify(order.device)
    work = output.with_name(f"{output.name}.work")
    chosen = choose_runtimes(order.backend, order.formats, order.parent, order.device, work)
    check_is_ours(output, "profile", output.parent)
    with at_work(output.parent, "profile-gpu", output, ()):
        return _profile_gpu(order, output, chosen, found)


def _profile_gpu(
    order: GpuOrder, output: Path, chosen: Chosen, found: tuple[Device, Conditions, dict[str, str]]
) -> Profile:
    identity, conditions, software = found
    software = software | chosen.software
    parent = with_format(order.parent, chosen.formats[0])
    device: TorchDevice = CudaDevice() if order.device == "cuda" else CpuDevice()
    work = output.with_name(f"{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    asked = {"plan": order.plan, "parent": parent, "backend": chosen.backend, "formats": chosen.formats}
    open_work(work, to_data(asked | {"device": identity.digest, "software": software}))
    sitting = _sit(parent, device, chosen, order.plan, work)
    ceilings = with_integer_rates(replace(sitting.ceilings.ceilings, **sitting.power), chosen.formats)
    profile = Profile(
        schema_version=SCHEMA_VERSION,
        name=identity.name,
        device=identity,
        conditions=conditions,
        software=software,
        num_threads=1,
        created=_now(),
        model=parent,
        ceilings=ceilings,
        method=Method(clock="device", warm_up=WARM_UP, outlier_rule=OUTLIER_RULE, seconds=order.plan.effort.limit_s),
        coverage=coverage_of(sitting),
    )
    profile = _with_rows(profile, [row for step in sitting.rows[: sitting.num_steps] for row in step])
    profile = write_marked(_tried(profile, sitting, order.plan), output)
    write_json(output.with_name(f"{output.name}.journal.json"), journal(sitting, profile))
    if profile.coverage.status == "complete":
        shutil.rmtree(work)
    return profile


def default_folder() -> Path:
    """Where a profile of this machine's GPU goes, whatever its parent.

    Raises:
        InputError: there is none.
    """
    return Path("hw_profiles") / identify("cuda")[0].name


def identify(device_name: DeviceName) -> tuple[Device, Conditions, dict[str, str]]:
    """What the device is, how it is, and the versions of what runs on it.

    Raises:
        InputError: there is no GPU that both the driver and torch know.
    """
    if device_name == "cpu":
        return this_device(), conditions_now(), installed_software()
    gpus = nvidia_gpus()
    if not gpus or not torch.cuda.is_available():
        raise InputError(
            "--device",
            got="cuda, but nvidia-smi names no GPU" if not gpus else f"cuda, but torch {torch.__version__} finds none",
            expected="an NVIDIA GPU that both its driver and torch know",
            remedy="Install the driver and a torch with CUDA; without --device the processor is measured.",
        )
    device, conditions, driver = gpus[0]
    return device, conditions, installed_software() | driver | {"cuda": str(torch.version.cuda)}


def coverage_of(sitting: Sitting) -> Coverage:
    """How much of what was asked for was measured, what failed, and which rows the clock was held down for."""
    failures = tuple(f"{each.name}: {each.error}" for each in sitting.done if each.error is not None)
    ended = _now()
    return Coverage(
        status="partial" if failures else "complete",
        asked=len(sitting.done),
        done=len(sitting.done) - len(failures),
        failed=len(failures),
        started=sitting.started,
        ended=ended,
        wall_s=(datetime.fromisoformat(ended) - datetime.fromisoformat(sitting.started)).total_seconds(),
        failures=failures,
        disturbed=sum(any(map(is_marked, each.notes)) for each in sitting.done),
        marked=marks_of_steps(sitting.done[: sitting.num_steps]),
    )


def journal(sitting: Sitting, profile: Profile) -> dict[str, Any]:
    """What a profile has no place for: how each measurement went, and the drift."""
    drift = drift_of(sitting.rows, sitting.num_once)
    return {
        "device": profile.name,
        "software": profile.software,
        "accuracy": to_data(profile.accuracy),
        "drift_of_repeats": None if drift is None else asdict(drift),
        "looks_s": {str(each.position): each.look_s for each in sitting.done if each.look_s is not None},
        "copy_bytes_per_s": sitting.ceilings.copy_bytes_per_s,
        "eager_launch_s": sitting.ceilings.eager_launch_s,
        "refused_formats": sitting.ceilings.refused,
        "marked": [each.name for each in sitting.done if any(map(is_marked, each.notes))],
        "cases": [{"name": each.name, "error": each.error, "notes": list(each.notes)} for each in sitting.done],
    }


def _sit(parent: Model, device: TorchDevice, chosen: Chosen, plan: Plan, work: Path) -> Sitting:
    started = from_data(str, _once(work / "started.json", _now), str(work / "started.json"))
    torch.manual_seed(0)
    reference = device.ready(reference_work(device, plan.reference_side))
    looking = GpuClock(device, plan.operator_effort, None)
    looking.time(reference)  # brings the clock to what is then the reference clock
    state = device.state()
    clock = GpuClock(device, plan.effort, None if state is None else state.sm_hz)
    benches = [chosen.bench(parent, clock, device, runtime) for runtime in chosen.runtimes(device)]
    ceilings = _once(work / "ceilings.json", lambda: to_data(measure_ceilings(clock, device, plan.sizes)))
    steps, (mixes, trials) = profile_steps(benches, plan), validation(benches, plan)
    todo = with_repeats([*steps, *trials])
    beside = " beside what building them takes" if chosen.backend == "tensorrt" else ""
    say(
        f"{len(steps)} cases in at most about {estimate_s(plan, steps):.0f} s{beside}, "
        f"then {len(todo) - len(steps)} to check"
    )
    with progress("profile", len(todo)) as advance:
        done = run_steps(todo, work, lambda: looking.time(reference).median_s, advance, device.release)
    _check_some(done)
    return Sitting(
        ceilings=from_data(GpuCeilings, ceilings, str(work / "ceilings.json")),
        power=_power(benches[0], plan, work / "power.json"),
        done=done,
        rows=corrected_rows(done),
        num_steps=len(steps),
        num_once=len(steps) + len(trials),
        mixes=mixes,
        started=started,
    )


def _power(bench: Bench, plan: Plan, path: Path) -> dict[str, Figure]:
    """Nothing where the parent itself does not run."""
    point = points_of(plan.load)[0]
    try:
        found = _once(path, lambda: to_data(measure_powers(bench, point, nvml_counter(), plan.is_quick)))
    except RuntimeError as error:
        say(f"Power was not measured: {error}")
        return {}
    return {name: from_data(Figure, data, name) for name, data in found.items()}


def _check_some(done: Sequence[Done]) -> None:
    if all(each.error is not None for each in done):
        raise InputError(
            "--device",
            got=f"{len(done)} measurements that failed, the first by: {done[0].error}",
            expected="a GPU on which some succeed",
            remedy="Look at what else runs there and at its memory, then run the same again.",
        )


def _tried(profile: Profile, sitting: Sitting, plan: Plan) -> Profile:
    """With how well it foretells children that it does not know; without where too little was measured for that."""
    checks = sitting.rows[sitting.num_steps : sitting.num_once]
    wholes = [[row for row in step if isinstance(row, WholeRow | MemoryRow)] for step in checks]
    measured = [(mix, rows) for mix, rows in zip(sitting.mixes, wholes, strict=True) if rows]
    try:
        return replace(profile, accuracy=validate(profile, plan.load, measured))
    except InputError as error:
        say(f"How well it foretells was not tried: {error}")
        return profile


def _once(path: Path, make: Callable[[], Any]) -> Any:
    """What was made before a kill, or is made now."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def _with_rows(profile: Profile, rows: Sequence[Row]) -> Profile:
    return replace(
        profile,
        times=tuple(row for row in rows if isinstance(row, TimeRow)),
        wholes=tuple(row for row in rows if isinstance(row, WholeRow)),
        memory=tuple(row for row in rows if isinstance(row, MemoryRow)),
        operators=tuple(row for row in rows if isinstance(row, OperatorRow)),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
