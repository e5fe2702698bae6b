"""Measures an NVIDIA GPU with torch: ceilings, operators, blocks and whole children of a parent, memory and power.

    python benchmarks/gpu/profile_gpu.py --out hw_profiles/my-gpu --parent recipes/demo-parent

Writes a profile (backend torch, bf16), and beside it `FOLDER.journal.json`: how each measurement went, what held the
clock down, the drift, and how well random whole children were foretold. A run that was stopped goes on where it was
(`FOLDER.work`). `--device cpu --quick` runs the same code without a GPU, to try it out; those times are worth nothing.
Without a parent, blocks of a Llama of 8 billion parameters are measured.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.conditions import Conditions, conditions_now
from blockwright.hw_profiles.device import Device, installed_software, this_device
from blockwright.hw_profiles.folder import write_profile
from blockwright.hw_profiles.gpu import nvidia_gpus
from blockwright.hw_profiles.profile import SCHEMA_VERSION, MemoryRow, OperatorRow, Profile, TimeRow, WholeRow
from blockwright.hw_profiles.provenance import Coverage, Method
from blockwright.model.parent import open_parent
from blockwright.profiler.gpu_blocks import BF16, Bench
from blockwright.profiler.gpu_ceilings import GpuCeilings, measure_ceilings, reference_work
from blockwright.profiler.gpu_clock import OUTLIER_RULE, WARM_UP, GpuClock
from blockwright.profiler.gpu_device import CpuDevice, CudaDevice, TorchDevice
from blockwright.profiler.gpu_plan import FULL, QUICK, Plan, estimate_s, points_of, profile_steps, validation
from blockwright.profiler.gpu_power import measure_powers, nvml_counter
from blockwright.profiler.gpu_sitting import (
    Done,
    Row,
    corrected_rows,
    drift_of,
    is_marked,
    open_work,
    run_steps,
    with_repeats,
)
from blockwright.spec import Attention, Block, GatedFFN, Model, Rope, with_format
from blockwright.strict import from_data, to_data

try:
    from blockwright.profiler.gpu_validate import validate
except ImportError:  # scipy is not there; the profile is whole without its table of accuracy
    validate = None

LLAMA_8B = Model(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    num_heads=32,
    head_dim=128,
    max_positions=8192,
    norm_eps=1e-5,
    rope=Rope(theta=5e5),
    activation="silu",
    has_tied_embeddings=False,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=8), ffn=GatedFFN(width=14336)),) * 32,
)
"""Meta-Llama-3-8B's config.json."""


def main() -> None:
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the profile")
    parser.add_argument("--parent", help="a checkpoint whose blocks to measure; its weights are not read")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few tiny measurements, to try the script out")
    arguments = parser.parse_args()
    try:
        parent = LLAMA_8B if arguments.parent is None else open_parent(arguments.parent).spec
        profile_gpu(arguments.out, parent, arguments.device, QUICK if arguments.quick else FULL)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def profile_gpu(out: Path, parent: Model, device_name: str, plan: Plan) -> Profile:
    """Measures everything that a plan asks for, and writes the profile and the journal."""
    parent = with_format(parent, BF16)
    identity, conditions, software = identify(device_name)
    device: TorchDevice = CudaDevice() if device_name == "cuda" else CpuDevice()
    work = out.with_name(f"{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    order = {"plan": plan, "parent": parent, "device": identity.digest, "software": software}
    open_work(work, to_data(order))
    started = _once(work / "started.json", _now)
    torch.manual_seed(0)

    reference = device.ready(reference_work(device, plan.reference_side))
    looking = GpuClock(device, plan.operator_effort, None)
    looking.time(reference)  # brings the clock to what is then the reference clock
    state = device.state()
    bench = Bench(
        parent=parent, clock=GpuClock(device, plan.effort, None if state is None else state.sm_hz), device=device
    )
    ceilings = from_data(
        GpuCeilings,
        _once(work / "ceilings.json", lambda: to_data(measure_ceilings(bench.clock, device, plan.sizes))),
        str(work / "ceilings.json"),
    )
    steps, (mixes, trials) = profile_steps(bench, plan), validation(bench, plan)
    todo = with_repeats([*steps, *trials])
    print(
        f"{len(steps)} cases in at most about {estimate_s(plan, steps):.0f} s, then {len(todo) - len(steps)} to check"
    )
    done = run_steps(todo, work, lambda: looking.time(reference).median_s, progress(len(todo)))
    power = _once(
        work / "power.json",
        lambda: to_data(measure_powers(bench, points_of(plan.load)[0], nvml_counter(), plan.is_quick)),
    )
    rows = corrected_rows(done)
    profile = Profile(
        schema_version=SCHEMA_VERSION,
        name=identity.name,
        device=identity,
        conditions=conditions,
        software=software,
        num_threads=1,
        created=_now(),
        model=parent,
        ceilings=_with_power(ceilings.ceilings, power),
        method=Method(clock="device", warm_up=WARM_UP, outlier_rule=OUTLIER_RULE, seconds=plan.effort.limit_s),
        coverage=_coverage(len(todo), started),
    )
    profile = _with_rows(profile, [row for step in rows[: len(steps)] for row in step])
    if validate is not None:
        checked = [[row for row in step if isinstance(row, WholeRow)] for step in rows[len(steps) :][: len(mixes)]]
        profile = replace(profile, accuracy=validate(profile, plan.load, list(zip(mixes, checked, strict=True))))
    write_profile(profile, out)
    num_once = len(steps) + len(trials)
    write_json(out.with_name(f"{out.name}.journal.json"), journal(done, rows, num_once, ceilings, profile))
    return profile


def identify(device_name: str) -> tuple[Device, Conditions, dict[str, str]]:
    """What the device is, how it is, and the versions of what runs on it.

    Raises:
        InputError: there is no GPU.
    """
    if device_name == "cpu":
        return this_device(), conditions_now(), installed_software()
    gpus = nvidia_gpus()
    if not gpus or not torch.cuda.is_available():
        raise InputError(
            "--device",
            got="no NVIDIA GPU that both its driver and torch know",
            expected="one",
            remedy="Install the driver and a torch with CUDA, or try the script out with --device cpu --quick.",
        )
    device, conditions, driver = gpus[0]
    return device, conditions, installed_software() | driver | {"cuda": str(torch.version.cuda)}


def journal(
    done: Sequence[Done], rows: Sequence[Sequence[Row]], num_once: int, ceilings: GpuCeilings, profile: Profile
) -> dict[str, Any]:
    """What a profile has no place for: how each measurement went, the drift, the marks."""
    drift = drift_of(rows, num_once)
    return {
        "device": profile.name,
        "software": profile.software,
        "accuracy": to_data(profile.accuracy),
        "drift_of_repeats": None if drift is None else asdict(drift),
        "looks_s": {str(each.position): each.look_s for each in done if each.look_s is not None},
        "copy_bytes_per_s": ceilings.copy_bytes_per_s,
        "eager_launch_s": ceilings.eager_launch_s,
        "refused_formats": ceilings.refused,
        "marked": [each.name for each in done if any(map(is_marked, each.notes))],
        "cases": [{"name": each.name, "notes": list(each.notes)} for each in done],
    }


def progress(total: int) -> Callable[[str], None]:
    """A line that is written over, with the time left by what was measured so far."""
    started, count = time.monotonic(), 0

    def advance(name: str) -> None:
        nonlocal count
        count += 1
        left_s = (time.monotonic() - started) / count * (total - count)
        print(f"\r{count}/{total}, {left_s:.0f} s left: {name[:80]:<80}", end="\n" * (count == total), flush=True)

    return advance


def _once(path: Path, make: Callable[[], Any]) -> Any:
    """What was made before a kill, or is made now."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def _with_power(ceilings: Ceilings, power: dict[str, Any]) -> Ceilings:
    return replace(ceilings, **{name: from_data(Figure, data, name) for name, data in power.items()})


def _with_rows(profile: Profile, rows: Sequence[Row]) -> Profile:
    return replace(
        profile,
        times=tuple(row for row in rows if isinstance(row, TimeRow)),
        wholes=tuple(row for row in rows if isinstance(row, WholeRow)),
        memory=tuple(row for row in rows if isinstance(row, MemoryRow)),
        operators=tuple(row for row in rows if isinstance(row, OperatorRow)),
    )


def _coverage(num_cases: int, started: str) -> Coverage:
    ended = _now()
    wall_s = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    return Coverage(
        status="complete", asked=num_cases, done=num_cases, failed=0, started=started, ended=ended, wall_s=wall_s
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
