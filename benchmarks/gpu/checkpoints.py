"""A run's parent and child on an NVIDIA GPU, in plain transformers: the same logits as on the CPU, and how fast.

    python benchmarks/gpu/checkpoints.py runs/demo --parent recipes/demo-parent --out benchmarks/results

Checks the logits of both checkpoints against the CPU's, then times decoding with a cache in turn, by CUDA events. A
model as small as the demo's waits for its launches there: dropped layers show, narrower ones hardly do. Needs torch
with CUDA and transformers; no engine. `--device cpu` runs the same code without a GPU, to try it out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 128, 64, 5
TOLERANCE = 2e-3
"""Largest difference of logits in fp32: kernels add in another order."""


def main() -> None:
    """Checks, times, and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--parent", type=Path, required=True, help="the parent's checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No GPU that torch can use is here. --device cpu tries the script out without one.")
    torch.backends.cuda.matmul.allow_tf32 = False
    folders = {"parent": arguments.parent, "child": arguments.run / "child"}
    differences = {name: logit_difference(folder, arguments.device) for name, folder in folders.items()}
    for name, difference in differences.items():
        if difference > TOLERANCE:
            raise SystemExit(f"{name}: logits differ from the CPU's by {difference:.2e}, more than {TOLERANCE:.0e}")
    models = {name: load(folder, arguments.device) for name, folder in folders.items()}
    rounds = [{name: decode_s(model, arguments.device) for name, model in models.items()} for _ in range(1 + ROUNDS)]
    rounds = rounds[1:]  # the first loads kernels
    ratios = [one["parent"] / one["child"] for one in rounds]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "largest_logit_difference": differences,
        "decode_s_per_token": rounds,
        "times_as_fast": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
    }
    path = arguments.out / f"{result['date']}-checkpoints-{arguments.device}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path.read_text())


def load(folder: Path, device: str) -> PreTrainedModel:
    """A checkpoint in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    return model.eval().to(torch.device(device))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def logit_difference(folder: Path, device: str) -> float:
    """The largest difference between the device's logits and the CPU's over a prompt."""
    model = load(folder, "cpu")
    ids_BT = prompt_of(model)
    expected = model(ids_BT).logits
    return (load(folder, device)(ids_BT.to(device)).logits.cpu() - expected).abs().max().item()


@torch.no_grad()
def decode_s(model: PreTrainedModel, device: str) -> float:
    """Seconds per token of greedy decoding after a prompt, the cache in place."""
    ids_BT = prompt_of(model).to(device)
    cache = DynamicCache(config=model.config)
    next_BT = model(ids_BT, past_key_values=cache).logits[:, -1:].argmax(-1)
    stop = start_clock(device)
    for _ in range(NEW_TOKENS):
        next_BT = model(next_BT, past_key_values=cache).logits[:, -1:].argmax(-1)
    return stop() / NEW_TOKENS


def start_clock(device: str) -> Callable[[], float]:
    """Starts a clock; the function it gives stops it and says how many seconds passed."""
    if device != "cuda":
        started = time.perf_counter()
        return lambda: time.perf_counter() - started
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()

    def stop() -> float:
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3

    return stop


def prompt_of(model: PreTrainedModel) -> torch.Tensor:
    """A prompt of random tokens, the same every time, ids_BT."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (1, PROMPT_TOKENS), generator=generator)


if __name__ == "__main__":
    main()
