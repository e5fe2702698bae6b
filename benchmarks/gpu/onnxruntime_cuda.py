"""Our graphs in onnxruntime-gpu, a parent beside its child: `python benchmarks/gpu/onnxruntime_cuda.py`.

Both flavours, weights in fp32, fp16 and int4, of a parent with 200 M random weights and a child with fewer heads,
narrower ffns and dropped parts. First every engine's logits against those of ONNX Runtime on the CPU; one that differs,
or that the provider cannot run, is told and not timed. Then a token behind 128 and 4096 others and a prompt of 512,
parent and child in turn: how many times as fast the child is, beside how many times fewer bytes it must read. Last,
which nodes each provider took: attention or products on the CPU make a time on a GPU worthless.

Needs onnxruntime-gpu in place of onnxruntime, 4 GB of the GPU's memory and 2 GB of disk. `--device cpu --small` tries
it out without a GPU; its times say nothing of one. Writes onnxruntime_<device>_<date>.json and .md.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from decoder_times import decode_s, prefill_s
from onnxruntime_cuda_page import as_text
from provenance import RESULTS, origin, write_results
from raced_models import FULL, SMALL, Plan, bytes_per_token, child_of, most_tokens, parent_of

from blockwright.compile.device_session import DeviceDecoder, DeviceSequences
from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.flavour import FlavourName
from blockwright.compile.providers import DeviceName, nodes_by_provider
from blockwright.compile.runtime import ORT_ERRORS, ort
from blockwright.compile.session import Decoder, Sequences
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.errors import InputError
from blockwright.hw_profiles.device import this_device
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Model, parse_format

FLAVOURS: tuple[FlavourName, ...] = ("standard", "contrib")
FORMATS = ("fp32", "fp16", "int4")
SETTINGS = SessionSettings(num_threads=1, accuracy_level=0)
"""Activations stay fp32 on the CPU, as they do on a GPU; one thread launches as well as several."""
Opened = Decoder | DeviceDecoder | TensorRtDecoder
TOLERANCE = 2e-3
"""Largest difference of logits, as a share of their standard deviation: providers add fp32 in other orders."""


def main() -> None:
    """Checks, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise SystemExit(
            "This ONNX Runtime is not onnxruntime-gpu: pip install 'blockwright[cuda]' in place of [cpu]. "
            "--device cpu --small tries the script out without a GPU."
        )
    plan = SMALL if asked.small else FULL
    rows, failures = measure(plan, cast(DeviceName, asked.device))
    command = f"python benchmarks/gpu/onnxruntime_cuda.py --device {asked.device}" + " --small" * asked.small
    results = origin(command, this_device()) | {
        "accelerator": _gpu_name() if asked.device == "cuda" else None,
        "onnxruntime": ort.__version__,
        "tolerance": TOLERANCE,
        "rows": rows,
        "failures": failures,
    }
    name = str(results["accelerator"] or "cpu").replace(" ", "-").lower()
    write_results(results, as_text(results), asked.out / f"onnxruntime_{name}_{results['date']}")
    if failures:
        raise SystemExit(f"{len(failures)} of the engines differ or do not run: see above.")


def measure(plan: Plan, device: DeviceName) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """A row for each flavour and format, and what could not be measured."""
    rows, failures = [], []
    models = {"parent": parent_of(plan), "child": child_of(plan)}
    weights = {name: random_weights(model, seed=1) for name, model in models.items()}
    for flavour in FLAVOURS:
        for format_name in FORMATS:
            case = {"flavour": flavour, "format": format_name}
            with tempfile.TemporaryDirectory() as folder:
                engines = {name: Path(folder) / name for name in models}
                for name, engine in engines.items():
                    engine.mkdir()
                    write_engine(_order(models[name], flavour, format_name), weights[name], engine)
                try:
                    rows.append(case | compare(engines, plan, device))
                except (*ORT_ERRORS, InputError) as error:
                    failures.append(case | {"why": str(error)})
    return rows, failures


def compare(engines: dict[str, Path], plan: Plan, device: DeviceName) -> dict[str, Any]:
    """Checks both engines against the CPU, then times them.

    Raises:
        InputError: one says something else than on the CPU, or cannot be opened on the device.
    """
    decoders = {name: DeviceDecoder.open(engine, device) for name, engine in engines.items()}
    errors: dict[str, float] = {}
    for name, engine in engines.items():
        errors[name] = difference(Decoder.open(engine, operators="onnxruntime"), decoders[name], plan)
        if not errors[name] <= TOLERANCE:  # NaN, too
            remedy = "Look at its nodes, one operator at a time: its times would mean nothing."
            got, expected = f"off by {errors[name]:.1e}", f"at most {TOLERANCE:.0e}"
            raise InputError(f"{name}'s logits", got=got, expected=expected, remedy=remedy)
    return {"largest_difference": errors} | race(decoders, plan)


def _order(model: Model, flavour: FlavourName, format_name: str) -> EngineOrder:
    return EngineOrder(
        model=model,
        weights_format=parse_format(format_name),
        num_positions=model.max_positions,
        session=SETTINGS,
        built_from="random weights",
        flavour=flavour,
    )


def difference(expected: Decoder, found: DeviceDecoder, plan: Plan) -> float:
    """The largest difference of logits after prompts of a batch and some tokens, as a share of their spread."""
    said = [_said(each.start(2, plan.prompt + 4), plan) for each in (expected, found)]
    return float(np.abs(said[1] - said[0]).max() / said[0].std())


def _said(sequences: Sequences | DeviceSequences, plan: Plan) -> np.ndarray:
    generator = np.random.default_rng(0)
    prompts = [generator.integers(plan.vocab, size=size).tolist() for size in (plan.prompt, plan.prompt // 3)]
    steps = [sequences.prefill(prompts)]
    steps += [sequences.step(generator.integers(plan.vocab, size=2)).copy() for _ in range(4)]
    return np.stack(steps)


def race(decoders: dict[str, DeviceDecoder], plan: Plan) -> dict[str, Any]:
    """Parent and child in turn, and which provider runs what."""
    nodes = {name: {p: dict(n) for p, n in nodes_by_provider(d.session).items()} for name, d in decoders.items()}
    return {"races": races(decoders, plan), "nodes": nodes}


def races(decoders: Mapping[str, Opened], plan: Plan) -> list[dict[str, Any]]:
    """Parent and child in turn, over each context and over a prompt; their sequences are started beforehand."""
    found: list[dict[str, Any]] = []

    def runs(tokens: int, time_s: Callable[..., float], *args: int) -> dict[str, Callable[[], float]]:
        started = {name: decoder.start(1, most_tokens(plan, tokens)) for name, decoder in decoders.items()}
        return {name: partial(time_s, each, [_prompt(plan, tokens)], *args) for name, each in started.items()}

    for context in plan.contexts:
        bytes_read = {name: bytes_per_token(decoder.engine.model, context) for name, decoder in decoders.items()}
        row = {"what": "decode", "tokens": context, "bytes_per_token": bytes_read}
        row["times_fewer_bytes"] = bytes_read["parent"] / bytes_read["child"]
        found.append(row | _in_turn(runs(context, decode_s, plan.new_tokens), plan.rounds))
    return [*found, {"what": "prefill", "tokens": plan.prompt} | _in_turn(runs(plan.prompt, prefill_s), plan.rounds)]


def _prompt(plan: Plan, num_tokens: int) -> list[int]:
    return np.random.default_rng(0).integers(plan.vocab, size=num_tokens).tolist()


def _in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Seconds by name, and the ratio of each round."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            taken[name].append(run())
    taken = {name: times[1:] for name, times in taken.items()}  # the first chooses kernels and makes room
    ratios = [parent / child for parent, child in zip(taken["parent"], taken["child"], strict=True)]
    return {
        "time_s": {name: statistics.median(times) for name, times in taken.items()},
        "times_as_fast": statistics.median(ratios),
        "times_as_fast_range": [min(ratios), max(ratios)],
    }


def _gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
