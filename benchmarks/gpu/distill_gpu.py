"""How fast global distillation runs on an NVIDIA GPU, and in how much memory: `python benchmarks/gpu/distill_gpu.py`.

Llamas of 125 M to 1.1 B parameters with random weights, each with a child whose ffns have half the width; the loss is
KL + cosine, the parent runs live. Ways of working: fp32 and bf16, each with activations kept and with layers run again.
For each: tokens per second (median, least and most over steps), the share of the rate of a large product of that
precision measured in the same run, and the peak of memory beside what `train/memory.py` foretells. FLOPs are those of
the models' products: the child's forward pass three times and the parent's once, layers run again not counted.

`--device cpu --small` tries it out without a GPU, where no memory is measured. A way that does not fit is told, and the
next one tried. Writes distill_<device>_<date>.json and .md into --out.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, origin, write_results
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from blockwright.hw_profiles.device import this_device
from blockwright.model.child import build_child, load_weights
from blockwright.model.parent import spec_of
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import GatedFFN, Model
from blockwright.train.distill import GkdSettings, GkdStep, distill
from blockwright.train.groups import layers_flops
from blockwright.train.memory import Work, predict_memory
from blockwright.train.objective import DTYPES
from blockwright.train.windows import Batch

WAYS = {
    f"{precision}, {words}": GkdSettings(
        learning_rate=1e-4, checkpoint_steps=10**6, precision=precision, recomputes_activations=again
    )
    for precision in ("fp32", "bf16")
    for words, again in (("activations kept", False), ("layers run again", True))
}
WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama's size, and the batch it is trained on."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    width: int
    vocab_size: int
    windows: int
    window_tokens: int

    @property
    def config(self) -> LlamaConfig:
        """The parent's configuration."""
        return LlamaConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            intermediate_size=self.width,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.window_tokens,
            tie_word_embeddings=True,
        )


_COMMON = Shape(
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    width=3072,
    vocab_size=49152,
    windows=8,
    window_tokens=2048,
)
SHAPES = {
    "125 M": _COMMON,
    "350 M": replace(_COMMON, hidden_size=1024, num_layers=24, num_heads=16, num_kv_heads=8),
    "1.1 B": replace(
        _COMMON,
        hidden_size=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        width=8192,
        vocab_size=128256,
        windows=4,
    ),
}
SMALL = {
    "small": replace(
        _COMMON, hidden_size=64, num_layers=2, num_heads=4, width=128, vocab_size=512, windows=2, window_tokens=32
    )
}


def main() -> None:
    """Measures all ways at all sizes and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="one tiny model, to try it out")
    parser.add_argument("--steps", type=int, default=12, help="of each way, behind a few to warm up (default: 12)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No GPU that torch can use is here. --device cpu --small tries the script out without one.")
    device = torch.device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    peaks = {precision: product_flops_per_s(device, precision, arguments.small) for precision in ("fp32", "bf16")}
    rows = [
        measure(name, shape, way, device, arguments.steps, peaks)
        for name, shape in (SMALL if arguments.small else SHAPES).items()
        for way in WAYS
    ]
    command = f"python benchmarks/gpu/distill_gpu.py --device {device}" + " --small" * arguments.small
    results = origin(command, this_device()) | {
        "accelerator": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "product_flops_per_s": peaks,
        "rows": rows,
    }
    name = str(results["accelerator"] or "cpu").replace(" ", "-").lower()
    write_results(results, as_text(results), arguments.out / f"distill_{name}_{results['date']}")


def product_flops_per_s(device: torch.device, precision: str, is_small: bool) -> float:
    """The rate of a large square product: the best of ten."""
    size = 512 if is_small else 8192
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(12):
        wait(device)
        began = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[2:])


def measure(
    name: str, shape: Shape, way: str, device: torch.device, steps: int, peaks: dict[str, float]
) -> dict[str, Any]:
    """One way of working at one size; what does not fit is told."""
    settings, parent = WAYS[way], spec_of(shape.config)
    layers = tuple(replace(block, ffn=GatedFFN(width=shape.width // 2)) for block in parent.layers)
    child = replace(parent, layers=layers)
    work = Work(
        child=child,
        parent=parent,
        settings=settings,
        windows=shape.windows,
        window_tokens=shape.window_tokens,
        has_gpu=device.type == "cuda",
    )
    foretold_bytes = predict_memory(work).total_bytes
    row: dict[str, Any] = {"parent": name, "way": way, "shape": asdict(shape), "foretold_bytes": foretold_bytes}
    try:
        times_s, peak_bytes = run(shape, parent, child, settings, device, steps)
    except torch.OutOfMemoryError as error:
        return row | {"failed": str(error).splitlines()[0]}
    per_token = flops_per_token(parent, shape.window_tokens) + 3 * flops_per_token(child, shape.window_tokens)
    tokens = shape.windows * shape.window_tokens
    rates = sorted(tokens / seconds for seconds in times_s)
    return row | {
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_range": [rates[0], rates[-1]],
        "share_of_product": statistics.median(rates) * per_token / peaks[settings.precision],
        "peak_bytes": peak_bytes,
    }


def run(
    shape: Shape, parent: Model, child: Model, settings: GkdSettings, device: torch.device, steps: int
) -> tuple[list[float], int | None]:
    """Seconds of each step behind the first few, and the peak of what tensors took."""
    models = [model_of(spec, shape, device) for spec in (child, parent)]
    nn.Module.to(models[1].requires_grad_(False), DTYPES[settings.precision])
    ids_BT = torch.randint(0, shape.vocab_size, (shape.windows, shape.window_tokens))
    stamps: list[float] = []

    def stamp(_: GkdStep) -> None:
        wait(device)
        stamps.append(time.perf_counter())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        batches = [Batch(ids_BT=ids_BT)] * (WARM_UP_STEPS + 1 + steps)
        distill(models[0], models[1], batches, settings, Path(folder) / "state", on_step=stamp)
    stamps = stamps[WARM_UP_STEPS:]
    times_s = [after - before for before, after in itertools.pairwise(stamps)]
    return times_s, torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def model_of(spec: Model, shape: Shape, device: torch.device) -> PreTrainedModel:
    """A child with random weights."""
    weights = {name: torch.from_numpy(array) for name, array in random_weights(spec).items()}
    child = load_weights(build_child(spec, shape.config), weights)
    nn.Module.to(child, device)
    return child


def flops_per_token(model: Model, window_tokens: int) -> float:
    """Of one forward pass, the head's product included."""
    return layers_flops(model, 0, len(model.layers), window_tokens) + 2 * model.hidden_size * model.vocab_size


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def as_text(results: dict[str, Any]) -> str:
    """The results for people."""
    lines = [
        f"# Global distillation on {results['accelerator'] or 'a CPU'}, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']}; large products: "
        + ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in results["product_flops_per_s"].items()),
        "",
        "| parent | way | tokens/s (least to most) | share of a product's rate | peak memory | foretold |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        start, foretold = f"| {row['parent']} | {row['way']} | ", f"{row['foretold_bytes'] / 1e9:.2f} GB |"
        if "failed" in row:
            lines.append(f"{start}did not fit: {row['failed']} | – | – | {foretold}")
            continue
        low, high = row["tokens_per_s_range"]
        peak = "not measured" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f} GB"
        rate = f"{row['tokens_per_s']:,.0f} ({low:,.0f} to {high:,.0f})"
        lines.append(f"{start}{rate} | {100 * row['share_of_product']:.1f} % | {peak} | {foretold}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
