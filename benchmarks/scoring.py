"""How fast candidates are scored by KL: `python benchmarks/scoring.py`, about 5 minutes on a quiet machine.

On the same tokens and candidates, in turn, round after round:

1. reload: for every candidate the parent's checkpoint is loaded from disk, then the candidate's weights are put in, and
   the whole model runs; the parent's logits were computed beforehand, which is not counted. What Model-Optimizer's
   scorer does, but for the checkpoint of a child that it also writes and builds;
2. in memory: one model, whose layer is swapped; the whole model runs for every candidate, the parent's logits are kept;
3. ours: `replace_one`, with everything counted: one loading of the checkpoint and of all candidates, and the parent's
   own pass.

1 and 2 run a sample of the candidates, evenly from all layers and kinds, for they take the same time for each; ours
runs all of them. All times are per candidate. Writes benchmarks/results/scoring_<device>_<date>.json and .md.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from provenance import REPOSITORY, RESULTS, origin, write_results
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.hw_profiles.device import this_device
from blockwright.library import Library, read_library
from blockwright.model.divergence import kl_divergence
from blockwright.model.parent import Parent, load_model, open_parent
from blockwright.pipeline.candidates import candidate_layers
from blockwright.pipeline.inputs import read_text, windows_of
from blockwright.pipeline.library import LibraryOrder, build_library
from blockwright.search.metrics import TextMetrics, text_judge
from blockwright.search.scoring import in_place, replace_one
from blockwright.search.space import SpaceSettings
from blockwright.spec import Candidate

DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or REPOSITORY.parent / "shared" / "data")
ROUNDS, SAMPLE_ONE_IN, BATCH_WINDOWS, WINDOW_TOKENS = 3, 5, 8, 256
LIBRARY_TOKENS = 1024
WAYS = ("reload", "in memory", "ours")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A parent with its library, and the tokens to score on."""

    parent: Parent
    library: Library
    folder: Path
    batches: tuple[Tensor, ...]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Those that change anything."""
        own = self.library.parent.layers
        return tuple(c for c in self.library.candidates if c.variant != getattr(own[c.layer], c.part))


def main() -> None:
    """Times every parent at every number of tokens and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-scoring"), help="for libraries")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cases = [(REPOSITORY / "recipes" / "demo-parent", "python", count) for count in (512, 2048, 8192)]
    llama, stories = DATA / "models" / "babyllama105", DATA / "text" / "tinystories"
    if llama.exists() and stories.exists():
        cases.append((llama, str(stories), 2048))
    rows = [measure(folder, text, count, arguments.folder / folder.name) for folder, text, count in cases]
    device = this_device()
    results = origin("python benchmarks/scoring.py", device) | {
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    write_results(results, as_text(results), arguments.out / f"scoring_{device.name}_{results['date']}")


def measure(checkpoint: Path, text: str, num_tokens: int, folder: Path) -> dict[str, Any]:
    """All ways in turn on one parent and so many tokens."""
    bench = _bench_of(checkpoint, text, num_tokens, folder / "library")
    sample = bench.candidates[::SAMPLE_ONE_IN]
    model = load_model(bench.parent)
    layers = candidate_layers(model, bench.library, bench.folder, bench.candidates)
    logits = parent_logits(model, bench.batches)
    ways: dict[str, tuple[int, Callable[[], dict[Candidate, float]]]] = {
        "reload": (len(sample), partial(by_reloading, bench, sample, logits)),
        "in memory": (len(sample), partial(by_swapping, model, {c: layers[c] for c in sample}, bench.batches, logits)),
        "ours": (len(bench.candidates), partial(by_ours, bench)),
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    scores: dict[str, dict[Candidate, float]] = {}
    for _ in range(ROUNDS):
        for way, (count, run) in ways.items():
            started = time.perf_counter()
            scores[way] = run()
            seconds[way].append((time.perf_counter() - started) / count)
    print(f"{checkpoint.name}, {num_tokens} tokens: {seconds}", file=sys.stderr)
    differences = [abs(scores["ours"][c] - scores["reload"][c]) for c in sample]
    return {
        "parent": checkpoint.name,
        "tokens": sum(ids_BT.numel() for ids_BT in bench.batches),
        "candidates": len(bench.candidates),
        "sampled": len(sample),
        "seconds_per_candidate": seconds,
        "largest_difference": max(differences),
        "largest_relative_difference": max(d / scores["reload"][c] for c, d in zip(sample, differences, strict=True)),
        "least_score": min(scores["reload"].values()),
        "greatest_score": max(scores["reload"].values()),
    }


def _bench_of(checkpoint: Path, text: str, num_tokens: int, folder: Path) -> Bench:
    parent = open_parent(str(checkpoint))
    order = LibraryOrder(
        space=SpaceSettings(),
        text=text,
        window_tokens=WINDOW_TOKENS,
        seed=0,
        tokens=LIBRARY_TOKENS,
        batch_windows=2,
        learning_rate=1e-3,
    )
    build_library(parent, order, folder)
    training = read_text(text).training
    windows = windows_of(parent, training, length=WINDOW_TOKENS, num_tokens=num_tokens, seed=1)
    batches = windows.ids_NT.split(BATCH_WINDOWS)
    return Bench(parent=parent, library=read_library(folder), folder=folder, batches=batches)


@torch.no_grad()
def parent_logits(model: PreTrainedModel, batches: Sequence[Tensor]) -> list[Tensor]:
    """What the parent says of every batch."""
    return [model(ids_BT, use_cache=False).logits for ids_BT in batches]


@torch.no_grad()
def whole_model_kl(model: PreTrainedModel, batches: Sequence[Tensor], logits: Sequence[Tensor]) -> float:
    """The mean KL of a whole child, all its logits at once."""
    kl = [
        kl_divergence(parent_BTV, model(ids_BT, use_cache=False).logits).mean(dim=1)
        for ids_BT, parent_BTV in zip(batches, logits, strict=True)
    ]
    return torch.cat(kl).mean().item()


def by_reloading(bench: Bench, sample: Sequence[Candidate], logits: Sequence[Tensor]) -> dict[Candidate, float]:
    """The parent's checkpoint anew for every candidate."""
    scores: dict[Candidate, float] = {}
    for candidate in sample:
        model = load_model(bench.parent)
        layer = candidate_layers(model, bench.library, bench.folder, [candidate])[candidate]
        with in_place(model, candidate, layer):
            scores[candidate] = whole_model_kl(model, bench.batches, logits)
    return scores


def by_swapping(
    model: PreTrainedModel, layers: dict[Candidate, nn.Module], batches: Sequence[Tensor], logits: Sequence[Tensor]
) -> dict[Candidate, float]:
    """One model in memory."""
    scores: dict[Candidate, float] = {}
    for candidate, layer in layers.items():
        with in_place(model, candidate, layer):
            scores[candidate] = whole_model_kl(model, batches, logits)
    return scores


def by_ours(bench: Bench) -> dict[Candidate, float]:
    """From the files to all scores."""
    model = load_model(bench.parent)
    layers = candidate_layers(model, bench.library, bench.folder, bench.candidates)
    kl: dict[Candidate, list[Tensor]] = {candidate: [] for candidate in layers}
    for ids_BT in bench.batches:
        judge_of = partial(text_judge, ids_BT=ids_BT, metrics=TextMetrics())
        for candidate, values in replace_one(model, layers, ids_BT, judge_of).items():
            kl[candidate].append(values["kl"])
    return {candidate: torch.cat(found).mean().item() for candidate, found in kl.items()}


def as_text(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    device = results["device"]
    lines = [
        f"# Scoring, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} on {device['model']}, {device['num_cores']} cores, "
        f"{results['threads']} threads, {device['memory_bytes'] / 2**30:.0f} GiB; "
        + ", ".join(f"{package} {version}" for package, version in results["software"].items())
        + ".",
        "",
        f"Milliseconds per candidate, median of {ROUNDS} rounds in turn (least to most); `reload` and `in memory` ran "
        f"one candidate in {SAMPLE_ONE_IN}, ours all. A ratio is of times of one round.",
        "",
        "| parent | tokens | candidates | reload | in memory | ours | reload / ours | in memory / ours | largest "
        "difference of scores | the same, relative |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        times = row["seconds_per_candidate"]
        cells = [spread([1e3 * s for s in times[way]], "{:.1f}") for way in WAYS]
        cells += [spread([a / b for a, b in zip(times[way], times["ours"], strict=True)], "{:.1f}") for way in WAYS[:2]]
        lines.append(
            f"| {row['parent']} | {row['tokens']} | {row['candidates']} | "
            + " | ".join(cells)
            + f" | {row['largest_difference']:.1e} | {row['largest_relative_difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], form: str) -> str:
    """Median, least and most."""
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


if __name__ == "__main__":
    main()
