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
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from onnxruntime_cuda_page import as_text
from provenance import RESULTS, origin, write_results

from blockwright.compile.device_session import DeviceDecoder, DeviceSequences
from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.flavour import FlavourName
from blockwright.compile.providers import DeviceName, nodes_by_provider
from blockwright.compile.runtime import ORT_ERRORS, ort
from blockwright.compile.session import Decoder, Sequences
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.count import ffn_weight_bytes, kv_bytes_per_slot, matrix_bytes, mixer_weight_bytes
from blockwright.errors import InputError
from blockwright.hw_profiles.device import this_device
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN, Model, NoOp, parse_format

FLAVOURS: tuple[FlavourName, ...] = ("standard", "contrib")
FORMATS = ("fp32", "fp16", "int4")
SETTINGS = SessionSettings(num_threads=1, accuracy_level=0)
"""Activations stay fp32 on the CPU, as they do on a GPU; one thread launches as well as several."""
Opened = Decoder | DeviceDecoder | TensorRtDecoder
TOLERANCE = 2e-3
"""Largest difference of logits, as a share of their standard deviation: providers add fp32 in other orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large."""

    hidden: int
    heads: int
    head_dim: int
    width: int
    vocab: int
    layers: int
    contexts: tuple[int, ...]
    prompt: int
    new_tokens: int
    rounds: int


FULL = Plan(
    hidden=1024,
    heads=16,
    head_dim=64,
    width=2816,
    vocab=32000,
    layers=16,
    contexts=(128, 4096),
    prompt=512,
    new_tokens=32,
    rounds=9,
)
SMALL = Plan(
    hidden=64,
    heads=4,
    head_dim=16,
    width=128,
    vocab=256,
    layers=4,
    contexts=(16, 300),
    prompt=48,
    new_tokens=2,
    rounds=2,
)


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


def parent_of(plan: Plan) -> Model:
    """The same layer throughout."""
    block = Block(mixer=Attention(num_kv_heads=plan.heads // 4), ffn=GatedFFN(width=plan.width))
    return llama(
        (block,) * plan.layers,
        vocab_size=plan.vocab,
        hidden_size=plan.hidden,
        num_heads=plan.heads,
        head_dim=plan.head_dim,
        max_positions=max(plan.contexts) + plan.new_tokens,
    )


def child_of(plan: Plan) -> Model:
    """As the parent, but of every four layers only one is whole."""
    parent = parent_of(plan)
    whole = parent.layers[0]
    fewer_heads = Block(mixer=Attention(num_kv_heads=1), ffn=GatedFFN(width=plan.width // 2))
    layers = (whole, fewer_heads, replace(whole, mixer=NoOp()), replace(whole, ffn=NoOp()))
    return replace(parent, layers=tuple(layers[index % 4] for index in range(plan.layers)))


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
    """Parent and child in turn, over each context and over a prompt."""
    found: list[dict[str, Any]] = []
    for context in plan.contexts:
        runs = {name: _decoding(decoder, context, plan) for name, decoder in decoders.items()}
        bytes_read = {name: bytes_per_token(decoder.engine.model, context) for name, decoder in decoders.items()}
        row = {"what": "decode", "tokens": context, "bytes_per_token": bytes_read}
        row["times_fewer_bytes"] = bytes_read["parent"] / bytes_read["child"]
        found.append(row | _in_turn(runs, plan.rounds, plan.new_tokens))
    runs = {name: _prefilling(decoder, plan) for name, decoder in decoders.items()}
    return [*found, {"what": "prefill", "tokens": plan.prompt} | _in_turn(runs, plan.rounds, 1)]


def bytes_per_token(model: Model, context: int) -> int:
    """What one new token reads at least: all layers' weights, the head, and the cache of what stands before it."""
    layers = sum(mixer_weight_bytes(model, b.mixer) + ffn_weight_bytes(model, b.ffn) for b in model.layers)
    cache = sum(kv_bytes_per_slot(model, block.mixer) for block in model.layers)
    return layers + matrix_bytes(model.hidden_size, model.vocab_size, model.embedding_weights) + context * cache


def _decoding(decoder: Opened, context: int, plan: Plan) -> Callable[[], None]:
    """Writes tokens behind a context, over and over in the same places."""
    sequences = decoder.start(1, context + plan.new_tokens)
    sequences.prefill([np.random.default_rng(0).integers(plan.vocab, size=context).tolist()])

    def run() -> None:
        sequences.lengths_B = np.array([context])
        for token in range(plan.new_tokens):
            sequences.step(np.array([token]))

    return run


def _prefilling(decoder: Opened, plan: Plan) -> Callable[[], object]:
    prompt = np.random.default_rng(0).integers(plan.vocab, size=plan.prompt).tolist()
    sequences = decoder.start(1, plan.prompt)
    return lambda: sequences.prefill([prompt])


def _in_turn(runs: Mapping[str, Callable[[], object]], rounds: int, per_run: int) -> dict[str, Any]:
    """Seconds by name, and the ratio of each round; logits come back to the host, so the clock sees all of it."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - started) / per_run)
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
