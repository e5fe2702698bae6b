"""How candidates should begin: `python benchmarks/train/initialise.py`, below 4 minutes of one core.

On the demo's parent and, where the data folder is, on two more checkpoints, every way to begin (`train/initialise.py`)
is taken for the same candidates of the same layers on the same calibration text, for three seeds of that text, and then
trained on the same batches by blockwise local distillation. The error is that of the layer's output on held-out text,
as a share of what the layer adds to its input; training is on the share of the output, as in the library.

Ways are compared by the ratio of their errors to that of the reference, in pairs, its geometric mean over layers and
seeds with a bootstrap interval over layers (those of all parents). Writes
benchmarks/results/initialise_<device>_<date>.json and .md.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import REPOSITORY, RESULTS, origin, write_results
from torch import Tensor, nn

from blockwright.hw_profiles.device import this_device
from blockwright.model.child import layer_with
from blockwright.model.parent import Parent, load_model, open_parent
from blockwright.model.walk import Walk
from blockwright.pipeline.inputs import read_text, windows_of
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, Part
from blockwright.statistics import estimate_mean
from blockwright.train.importance import LayerSums, Wanted, watch
from blockwright.train.initialise import InitSettings, Seen, conclude, ffn_weights, mixer_weights
from blockwright.train.schedule import warm_up_then_cosine

DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or REPOSITORY.parent / "shared" / "data")
SEEDS, WINDOW_TOKENS, CALIBRATION_WINDOWS, HELD_OUT_WINDOWS = (0, 1, 2), 128, 128, 16
BATCH_WINDOWS, STEPS, LOOKS = 4, 32, (0, 8, 32)
LEARNING_RATE = 2e-3
"""The default of `blockwright library`."""
WAYS = {
    "KV heads": ("mean", "first", "importance"),
    "linear mixer": ("product", "least-squares"),
    "ffn channels": ("contribution", "iterative", "fitted", "random"),
    "linear ffn": ("product", "least-squares"),
}
"""The first is the reference."""
FIELD = {"KV heads": "kv_heads", "linear mixer": "linear", "ffn channels": "channels", "linear ffn": "linear"}
ALL = Wanted(moments=True, kv_shares=True, linear=True)


@dataclass(frozen=True, kw_only=True)
class States:
    """What enters a layer, what is between its mixer and its ffn, what leaves it."""

    x_NTD: Tensor
    mid_NTD: Tensor
    y_NTD: Tensor

    def rows(self, rows: Tensor) -> "States":
        """Some of the windows."""
        return States(x_NTD=self.x_NTD[rows], mid_NTD=self.mid_NTD[rows], y_NTD=self.y_NTD[rows])


@dataclass(frozen=True, kw_only=True)
class Start:
    """A candidate that begins in one way."""

    kind: str
    way: str
    candidate: Candidate
    layer: nn.Module


def main() -> None:
    """Compares on every parent and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    began = time.process_time()
    cases = [(REPOSITORY / "recipes" / "demo-parent", "python")]
    stories = DATA / "text" / "tinystories"
    cases += [(DATA / "models" / name, str(stories)) for name in ("babyllama105", "stories260K") if stories.exists()]
    rows = [row for folder, text in cases for row in measure(folder, text)]
    device = this_device()
    results = origin("python benchmarks/train/initialise.py", device) | {
        "threads": torch.get_num_threads(),
        "cpu_s": round(time.process_time() - began, 1),
        "seeds": SEEDS,
        "calibration_tokens": CALIBRATION_WINDOWS * WINDOW_TOKENS,
        "held_out_tokens": HELD_OUT_WINDOWS * WINDOW_TOKENS,
        "batch_tokens": BATCH_WINDOWS * WINDOW_TOKENS,
        "learning_rate": LEARNING_RATE,
        "comparisons": comparisons(rows),
        "rows": rows,
    }
    write_results(results, as_text(results), arguments.out / f"initialise_{device.name}_{results['date']}")


def measure(checkpoint: Path, text: str) -> list[dict[str, Any]]:
    """All ways on every second layer of one parent, for every seed."""
    parent, source = open_parent(str(checkpoint)), read_text(text)
    model = load_model(parent).requires_grad_(False)
    walk, rows = Walk(model), []
    held_out = _ids(parent, source.held_out, HELD_OUT_WINDOWS, SEEDS[0])
    for seed in SEEDS:
        x_NTD = walk.embed(_ids(parent, source.training, CALIBRATION_WINDOWS, seed))
        held_NTD = walk.embed(held_out)
        for layer, block in enumerate(parent.spec.layers):
            assert isinstance(block.mixer, Attention)
            sums = LayerSums(ALL, block.mixer.num_kv_heads)
            with watch(walk.layers[layer], sums):
                training = run(walk, layer, x_NTD)
            judged = run(walk, layer, held_NTD)
            if layer % 2 == 0:
                for start in starts(walk, parent.spec, layer, sums, seed):
                    errors = learn(walk, start, training, judged, seed)
                    rows.append(
                        {"parent": checkpoint.name, "layer": layer, "seed": seed, "kind": start.kind, "way": start.way}
                        | {"candidate": start.candidate.name, "errors": errors}
                    )
            x_NTD, held_NTD = training.y_NTD, judged.y_NTD
        print(checkpoint.name, "seed", seed, flush=True)
    return rows


def run(walk: Walk, layer: int, x_NTD: Tensor) -> States:
    """One layer of the parent on all windows, a few at a time."""
    with torch.no_grad():
        mids = [walk.mix(layer, x_BTD) for x_BTD in x_NTD.split(8)]
        ys = [walk.feed(layer, mid_BTD) for mid_BTD in mids]
    return States(x_NTD=x_NTD, mid_NTD=torch.cat(mids), y_NTD=torch.cat(ys))


def starts(walk: Walk, parent: Model, layer: int, sums: LayerSums, seed: int) -> list[Start]:
    """Half and a quarter of the KV heads and of the channels, and matrices, each begun in every way."""
    block, own = parent.layers[layer], walk.layers[layer].state_dict()
    assert isinstance(block.mixer, Attention)
    assert isinstance(block.ffn, GatedFFN)
    heads = [Attention(num_kv_heads=block.mixer.num_kv_heads // part) for part in (2, 4)]
    widths = [GatedFFN(width=block.ffn.width // part) for part in (2, 4)]
    offered: dict[str, tuple[Part, Sequence[Any]]] = {
        "KV heads": ("mixer", heads),
        "linear mixer": ("mixer", [LinearMixer()]),
        "ffn channels": ("ffn", widths),
        "linear ffn": ("ffn", [LinearFFN()]),
    }
    found = []
    for kind, (part, variants) in offered.items():
        for way in WAYS[kind]:
            init = InitSettings(**{FIELD[kind]: "contribution" if way == "random" else way})  # pyright: ignore
            seen = conclude(parent, own, sums, init, [ffn.width for ffn in widths])
            if way == "random":
                order_W = torch.randperm(block.ffn.width, generator=torch.Generator().manual_seed(seed))
                seen = Seen(ranking_W=order_W.double())
            for variant in variants:
                candidate = Candidate(layer=layer, part=part, variant=variant)
                weights = (
                    mixer_weights(parent, own, variant, seen, init)
                    if part == "mixer"
                    else ffn_weights(own, variant, seen, init)
                )
                student = layer_with(walk.model, parent, candidate, weights)
                for name, parameter in student.named_parameters():
                    parameter.requires_grad_(name in weights)
                found.append(Start(kind=kind, way=way, candidate=candidate, layer=student))
    return found


def learn(walk: Walk, start: Start, training: States, judged: States, seed: int) -> list[float]:
    """Trains a candidate and gives its error on held-out text before it and after some steps."""
    parameters = [parameter for parameter in start.layer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(len(training.x_NTD), generator=torch.Generator().manual_seed(seed))
    errors = [error(walk, start, judged)]
    for step in range(STEPS):
        rows = order[torch.arange(step * BATCH_WINDOWS, (step + 1) * BATCH_WINDOWS) % len(order)]
        batch = training.rows(rows)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm_up_then_cosine(step, STEPS)
        wrong = (output(walk, start, batch) - batch.y_NTD).square().mean()
        (wrong / batch.y_NTD.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in LOOKS:
            errors.append(error(walk, start, judged))
    return errors


def output(walk: Walk, start: Start, states: States) -> Tensor:
    """The layer's output with the candidate in it."""
    index = start.candidate.layer
    if start.candidate.part == "mixer":
        return walk.layer(index, states.x_NTD, start.layer)
    return walk.feed(index, states.mid_NTD, start.layer)


@torch.no_grad()
def error(walk: Walk, start: Start, states: States) -> float:
    """The squared error as a share of what the layer adds."""
    wrong = (output(walk, start, states) - states.y_NTD).square().sum()
    return (wrong / (states.y_NTD - states.x_NTD).square().sum()).item()


def comparisons(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every way against its reference, on each parent and on all."""
    parents = list(dict.fromkeys(row["parent"] for row in rows))
    found = []
    for kind, ways in WAYS.items():
        by_key = {(r["way"], r["parent"], r["candidate"], r["seed"]): r for r in rows if r["kind"] == kind}
        for name in [*parents, "all"] if len(parents) > 1 else parents:
            of_reference = [k[1:] for k in by_key if k[0] == ways[0] and name in (k[1], "all")]
            groups = np.array([f"{k[0]} {by_key[ways[0], *k]['layer']}" for k in of_reference])
            for way in ways:
                row: dict[str, Any] = {"kind": kind, "parent": name, "way": way}
                for look, steps in enumerate(LOOKS):
                    own = np.array([by_key[way, *k]["errors"][look] for k in of_reference])
                    reference = np.array([by_key[ways[0], *k]["errors"][look] for k in of_reference])
                    ratio = estimate_mean(np.log(own / reference), groups)
                    row[f"after_{steps}"] = {
                        "error": float(np.exp(np.log(own).mean())),
                        "ratio": float(np.exp(ratio.value)),
                        "low": float(np.exp(ratio.low)),
                        "high": float(np.exp(ratio.high)),
                        "num_layers": ratio.num_values,
                    }
                found.append(row)
    return found


def as_text(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    software = ", ".join(f"{name} {version}" for name, version in results["software"].items())
    device = results["device"]
    lines = [
        f"# First weights, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} on {device['vendor']} {device['model']}, "
        f"{results['threads']} thread, {results['cpu_s']:.0f} s of it; {software}.",
        "",
        f"Errors are squared, on {results['held_out_tokens']} held-out tokens, as a share of what the layer adds; "
        f"geometric means over layers, candidates and {len(SEEDS)} seeds of {results['calibration_tokens']} tokens of "
        "calibration text. A ratio is to the first way of its group, in pairs, with a 95 % bootstrap interval over "
        f"layers; below 1 is better. Steps are of {results['batch_tokens']} tokens, AdamW at "
        f"{results['learning_rate']:g}, warmed up, then along a cosine down to 5 % of it in {STEPS} steps.",
        "",
        "| | parent | way | " + " | ".join(f"error after {steps} | ratio after {steps}" for steps in LOOKS) + " |",
        "|---|---|---|" + "---|---|" * len(LOOKS),
    ]
    for row in results["comparisons"]:
        cells = [row["kind"], row["parent"], row["way"]]
        for steps in LOOKS:
            at = row[f"after_{steps}"]
            cells += [f"{at['error']:.4f}", f"{at['ratio']:.3f} ({at['low']:.3f} to {at['high']:.3f})"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ids(parent: Parent, documents: list[Any], num_windows: int, seed: int) -> Tensor:
    tokens = num_windows * WINDOW_TOKENS
    return windows_of(parent, documents, length=WINDOW_TOKENS, num_tokens=tokens, seed=seed).ids_NT


if __name__ == "__main__":
    main()
