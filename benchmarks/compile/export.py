"""Writing an ONNX graph of a checkpoint, beside torch's own exporter: `python benchmarks/compile/export.py`.

A Llama of a billion random weights (the shape of Llama 3.2 1B: 16 layers, hidden 2048, 32 heads on 8, ffn 8192, 128256
words, tied) from safetensors in fp32 to files that ONNX Runtime opens, with a key-value cache. Ours by `build_engine`,
in fp32 and in int4; torch's by transformers and torch.onnx.export(dynamo=True) in fp32, without which there is no
quantising either. Each in a process of its own, in turn, round after round, one thread. Times begin when the libraries
are imported; memory is the peak of what is resident, mapped files included, above what the libraries take.

Needs onnxscript. About 15 minutes on two cores and 16 GB of disk, a minute with --small. Writes
benchmarks/results/export_<device>_<date>.json and .md.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import apart, command_line, spread
from provenance import RESULTS, origin, write_results

from blockwright.count import parameters
from blockwright.hw_profiles.device import this_device
from blockwright.llama import llama
from blockwright.spec import Attention, Block, GatedFFN, Model, parse_format

FULL = llama(
    (Block(mixer=Attention(num_kv_heads=8), ffn=GatedFFN(width=8192)),) * 16,
    vocab_size=128256,
    hidden_size=2048,
    num_heads=32,
    head_dim=64,
    max_positions=2048,
    rope_theta=5e5,
)
SMALL = replace(
    FULL,
    layers=(Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=512)),) * 2,
    vocab_size=1000,
    hidden_size=256,
    num_heads=4,
)
PEER, OURS = "torch.onnx.export, fp32", {"ours, fp32": "fp32", "ours, int4": "int4"}
TIMES_AS_FAST, MOST_OF_CHECKPOINT = 20, 0.3
"""What we want: in fp32, beside torch's exporter, and of memory."""


def main() -> None:
    """Writes the checkpoint and exports it in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint and the graphs (default: a temporary one)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    model = SMALL if asked.small else FULL
    if asked.one is not None:
        work(asked.one[0], model, Path(asked.one[1]))
        return
    device = this_device()
    results = origin(command_line(), device) | {"parameters": parameters(model)}
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        _run("checkpoint", folder, asked.small)
        results["checkpoint_bytes"] = (Path(folder) / "checkpoint" / "model.safetensors").stat().st_size
        names = (PEER, *OURS)
        rounds = [{name: _run(name, folder, asked.small) for name in names} for _ in range(asked.rounds)]
    results["rounds"] = rounds
    results["rows"] = [_row(name, rounds, results["checkpoint_bytes"]) for name in (PEER, *OURS)]
    write_results(results, _page(results, device.name), asked.out / f"export_{device.name}_{results['date']}")


def _run(name: str, folder: str, is_small: bool) -> dict[str, float]:
    """Runs one job in a process of its own."""
    found = apart(__file__, name, folder, *["--small"] * is_small)
    print(name, found, flush=True)
    return found


def work(name: str, model: Model, folder: Path) -> None:
    """One job; prints what it took."""
    checkpoint, out = folder / "checkpoint", folder / "out"
    if name == "checkpoint":
        _write_checkpoint(model, checkpoint)
        print("{}")
        return
    export = _torch_exporter(model) if name == PEER else _our_exporter(model, OURS[name])
    before, start = _peak_bytes(), time.perf_counter()
    export(checkpoint, out)
    found = {"time_s": time.perf_counter() - start, "peak_bytes": _peak_bytes() - before}
    found["written_bytes"] = sum(file.stat().st_size for file in out.iterdir())
    shutil.rmtree(out)
    print(json.dumps(found))


def _peak_bytes() -> int:
    # Not getrusage, whose peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def _write_checkpoint(model: Model, folder: Path) -> None:
    from safetensors.numpy import save_file

    from blockwright.profiler.synthetic import random_weights

    folder.mkdir(parents=True)
    save_file(random_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    _config(model).save_pretrained(folder)


def _config(model: Model) -> Any:
    from blockwright.profiler.torch_blocks import hf_config

    return hf_config(model)


def _our_exporter(model: Model, text: str) -> Callable[[Path, Path], object]:
    from blockwright.compile.engine import EngineOrder, SessionSettings, build_engine

    order = EngineOrder(
        model=model,
        weights_format=parse_format(text),
        num_positions=model.max_positions,
        session=SessionSettings(num_threads=1),
        built_from="random weights",
    )
    return lambda checkpoint, out: build_engine(order, checkpoint, out)


def _torch_exporter(model: Model) -> Callable[[Path, Path], object]:
    import onnxscript  # noqa: F401  # loaded with the libraries, as everything that the exporter needs  # pyright: ignore[reportMissingImports]
    import torch
    from transformers import DynamicCache, LlamaForCausalLM

    torch.set_num_threads(1)

    class WithCache(torch.nn.Module):
        """The cache as a flat list of tensors, before and behind."""

        def __init__(self, child: torch.nn.Module) -> None:
            super().__init__()
            self.child = child

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[torch.Tensor]) -> Any:
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            found = self.child(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache)
            behind = [tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)]
            return found.logits, behind

    def export(checkpoint: Path, out: Path) -> None:
        child = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        sizes = [block.mixer.num_kv_heads for block in model.layers if isinstance(block.mixer, Attention)]
        past = [torch.zeros(2, heads, 5, model.head_dim) for heads in sizes for _ in "kv"]
        ids, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
        free = torch.export.Dim.DYNAMIC
        shapes = {
            "input_ids": {0: free, 1: free},
            "attention_mask": {0: free, 1: free},
            "past": [{0: free, 2: free} for _ in past],
        }
        with_cache, inputs = WithCache(child).eval(), (ids, mask, past)
        program = torch.onnx.export(
            with_cache, inputs, dynamo=True, dynamic_shapes=shapes, opset_version=23, verbose=False
        )
        out.mkdir()
        assert program is not None
        program.save(out / "model.onnx", external_data=True)

    return export


def _row(name: str, rounds: list[dict[str, Any]], checkpoint_bytes: int) -> dict[str, Any]:
    return {
        "name": name,
        "time_s": spread([each[name]["time_s"] for each in rounds]),
        "times_as_fast_as_torch": spread([each[PEER]["time_s"] / each[name]["time_s"] for each in rounds]),
        "memory_of_checkpoint": spread([each[name]["peak_bytes"] / checkpoint_bytes for each in rounds]),
        "peak_bytes": spread([each[name]["peak_bytes"] for each in rounds]),
        "written_bytes": rounds[-1][name]["written_bytes"],
    }


def _page(results: dict[str, Any], device_name: str) -> str:
    lines = [
        f"# Writing an ONNX graph beside torch's exporter, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} on {device_name}: {results['software']}.",
        "",
        f"{results['parameters'] / 1e6:.0f} million random weights, a checkpoint of "
        f"{results['checkpoint_bytes'] / 1e9:.2f} GB in fp32; one thread. "
        f"Wanted in fp32: {TIMES_AS_FAST} times as fast as torch, and at most "
        f"{MOST_OF_CHECKPOINT:.0%} of the checkpoint in memory. Median and range of {len(results['rounds'])} rounds.",
        "",
        "| what | s | times as fast as torch | memory beside the libraries, of the checkpoint | written, GB |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        seconds, faster, memory = (row[key] for key in ("time_s", "times_as_fast_as_torch", "memory_of_checkpoint"))
        lines.append(
            f"| {row['name']} | {seconds['median']:.1f} ({seconds['low']:.1f}–{seconds['high']:.1f}) "
            f"| {faster['median']:.1f} ({faster['low']:.1f}–{faster['high']:.1f}) "
            f"| {memory['median']:.0%} ({memory['low']:.0%}–{memory['high']:.0%}) | {row['written_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
