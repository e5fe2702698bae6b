"""Our children in TensorRT on an NVIDIA GPU, a parent beside its child: `python benchmarks/gpu/tensorrt_gpu.py`.

For each TensorRT that is installed, first whether it takes the chip at all: a tiny plan is built for it, opened and
run. TensorRT-RTX 1.7 names no Hopper among those it builds for; there it is asked to build for the GPU at hand. Then,
in fp16 and int4, the parent of 200 M random weights and its child of `onnxruntime_cuda.py`: built, their logits held
against torch's in fp16 (with the weights rounded as the plan has them), tokens and a prompt timed in turn.

Each of these runs in a process of its own, for TensorRT may abort. What fails is listed with how far it came, and does
not stop the rest. Needs torch with CUDA and tensorrt or tensorrt-rtx, 6 GB of the GPU's memory and 3 GB of disk.
Without a GPU, `--for sm86` builds the tiny plan and lists that nothing opens it. Writes tensorrt_<device>_<date>.json
and .md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from onnxruntime_cuda import Opened, races
from provenance import RESULTS, origin, write_results
from race_processes import told
from raced_models import FULL, SMALL, Plan, child_of, parent_of
from safetensors.numpy import save_file
from tensorrt_gpu_page import as_text
from torch_reference import reference_of
from transformers import PreTrainedModel

from blockwright.compile.engine import ENGINE_FILE
from blockwright.compile.tensorrt_engine import TensorRtOrder, build_tensorrt_engine
from blockwright.compile.tensorrt_package import Package, PackageName, find_package
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.compile.tensorrt_target import gpu_capability
from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.device import this_device
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Model, parse_format
from blockwright.strict import to_data

PACKAGES: tuple[PackageName, ...] = ("tensorrt_rtx", "tensorrt")
FORMATS = ("fp16", "int4-g64")
TOLERANCE = 5e-2
"""Largest difference of logits, as a share of their standard deviation: fp16 on both sides, rounded in other places."""
_STEPS = 4
_PROBE = replace(SMALL, contexts=(16,), rounds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one process tries."""

    package: PackageName
    format: str
    is_probe: bool
    is_small: bool
    capability: str

    @property
    def plan(self) -> Plan:
        """How large."""
        return _PROBE if self.is_probe else SMALL if self.is_small else FULL


def main() -> None:
    """Tries everything, and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument("--for", dest="capability", help="as sm86, where no GPU is here: what to build for")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case is not None:
        run_case(Case(**json.loads(asked.case)), asked.answer)
        return
    capability = gpu_capability() or asked.capability
    if capability is None:
        raise SystemExit("No GPU that torch can use is here. --for sm86 tries the script out without one.")
    rows = [row for package in PACKAGES if _version(package) for row in try_all(package, capability, asked.small)]
    if not rows:
        raise SystemExit("No TensorRT is here: pip install 'blockwright[tensorrt]' or 'blockwright[tensorrt-rtx]'.")
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    command = "python benchmarks/gpu/tensorrt_gpu.py" + f" --for {asked.capability}" * bool(asked.capability)
    results = origin(command + " --small" * asked.small, this_device()) | {
        "accelerator": accelerator,
        "capability": capability,
        "versions": {package: _version(package) for package in PACKAGES},
        "tolerance": TOLERANCE,
        "rows": rows,
    }
    name = str(accelerator or "no gpu").replace(" ", "-").lower()
    write_results(results, as_text(results), asked.out / f"tensorrt_{name}_{results['date']}")
    if failures := [row for row in rows if row["why"] is not None]:
        raise SystemExit(f"{len(failures)} of {len(rows)} did not come to an end: see above.")


def try_all(package: PackageName, capability: str, is_small: bool) -> list[dict[str, Any]]:
    """The probe, and where it succeeds all formats: what a chip refuses in a tiny plan it refuses in a large one."""
    probe = Case(package=package, format="fp16", is_probe=True, is_small=is_small, capability=capability)
    rows = [try_case(probe)]
    if rows[0]["why"] is None:
        rows += [try_case(replace(probe, format=each, is_probe=False)) for each in FORMATS]
    return rows


def try_case(case: Case) -> dict[str, Any]:
    """Runs a case in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        words = ["--case", json.dumps(asdict(case)), "--answer", str(answer)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        return asdict(case) | told(read_json(answer) if answer.exists() else {}, done.returncode, done.stderr)


def run_case(case: Case, answer: Path) -> None:
    """Builds, opens, compares, times; what is known is written after each, for the next may end the process."""
    found: dict[str, Any] = {}

    def tell(**news: Any) -> None:
        found.update(news)
        write_json(answer, found)

    models = {"parent": parent_of(case.plan), "child": child_of(case.plan)}
    weights = {name: random_weights(model, seed=1) for name, model in models.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            engines = {name: Path(folder) / f"{name}-engine" for name in models}
            tell(built={name: build(models[name], weights[name], case, engines[name]) for name in models})
            decoders = {name: TensorRtDecoder.open(engine) for name, engine in engines.items()}
            tell(opened=True)
        errors: dict[str, float] = {}
        for name, decoder in decoders.items():
            reference = reference_of(decoder.engine.model, weights[name])
            errors[name] = difference(decoder, reference, case.plan)
            tell(largest_difference=errors)
            if not errors[name] <= TOLERANCE:  # NaN, too
                remedy = "Look at its layers, one at a time: its times would mean nothing."
                got, expected = f"off by {errors[name]:.1e}", f"at most {TOLERANCE:.0e}"
                raise InputError(f"{name}'s logits", got=got, expected=expected, remedy=remedy)
        tell(races=races(decoders, case.plan))
    except (InputError, RuntimeError) as error:  # torch's errors of CUDA are of the latter kind
        tell(why=str(error))


def build(
    model: Model, weights: dict[str, np.ndarray], case: Case, folder: Path, most_sequences: int = 2
) -> dict[str, Any]:
    """Builds an engine of a model.

    Raises:
        InputError: TensorRT does not.
    """
    package = find_package((case.package,))
    checkpoint = folder.with_name(folder.name + "-checkpoint")
    checkpoint.mkdir()
    save_file(weights, checkpoint / "model.safetensors")
    (checkpoint / "tokenizer.json").write_text("{}")
    (checkpoint / "config.json").write_text("{}")
    order = TensorRtOrder(
        stored=stored_for_tensorrt(model, parse_format(case.format)),
        num_positions=model.max_positions,
        most_sequences=most_sequences,
        package=package,
        capabilities=(named(package, case.capability),),
        built_from="random weights",
    )
    engine = build_tensorrt_engine(order, checkpoint, folder)
    # What was built for the GPU at hand runs on it.
    write_json(folder / ENGINE_FILE, to_data(replace(engine, compute_capabilities=(case.capability,))))
    plan_bytes = engine.files["model.plan"].size_bytes
    return {"build_s": engine.build_s, "plan_bytes": plan_bytes, "weight_bytes": engine.weight_bytes}


def named(package: Package, capability: str) -> str:
    """What to ask the package to build for: the GPU at hand, where it does not know the chip's name."""
    if package.name == "tensorrt":
        return capability
    return capability if capability.upper() in package.trt.ComputeCapability.__members__ else "current"


@torch.no_grad()
def difference(decoder: Opened, reference: PreTrainedModel, plan: Plan) -> float:
    """The largest difference of logits after prompts of a batch and some tokens, as a share of their spread."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(plan.vocab, size=size + _STEPS) for size in (plan.prompt, plan.prompt // 3)]
    sequences = decoder.start(len(texts), plan.prompt + _STEPS)
    found_SBV = [sequences.prefill([text[:-_STEPS].tolist() for text in texts])]
    for step in range(_STEPS):
        found_SBV.append(sequences.step(np.array([text[step - _STEPS] for text in texts])).copy())
    expected_BSV = [
        reference(torch.from_numpy(text)[None].to(reference.device), use_cache=False).logits[0, -1 - _STEPS :]
        for text in texts
    ]
    expected_SBV = torch.stack(expected_BSV, dim=1).float().cpu().numpy()
    return float(np.abs(np.stack(found_SBV) - expected_SBV).max() / expected_SBV.std())


def _version(package: PackageName) -> str | None:
    try:
        return find_package((package,)).version
    except InputError:
        return None


if __name__ == "__main__":
    main()
