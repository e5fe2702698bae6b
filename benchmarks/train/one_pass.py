"""One pass for the whole library against one job per candidate: `python benchmarks/train/one_pass.py`.

A random Llama of 12 layers; in every layer 20 candidates that learn: three numbers of KV heads, a linear mixer, fifteen
widths of the ffn and a linear ffn. On the same batches, with the same settings, in turn, round after round:

1. one pass: `train_library`, everything in one group;
2. truncated: a job for each candidate that runs the parent from the embeddings to the candidate's layer;
3. full: the same, but the parent runs to its logits, as it does where a stock forward is hooked.

A job has its parent in memory and its channels ranked already, which flatters 2 and 3. What one pass has over them is
the parent's pass: over what is trained on, which the FLOPs count, and over the batches that are judged on, which they
do not, though a job runs the parent there for itself, within the times of 2 and 3. They run a sample of the candidates,
evenly from all layers and kinds, and the time of all is the sample's over its share of their counted work. FLOPs are
those of `train/groups.py` (a test holds it to torch's own count), the head's included in 3. What both learn is
compared, number by number. Writes benchmarks/results/one-pass_<device>_<date>.json and .md.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, origin, write_results
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from blockwright.hw_profiles.device import this_device
from blockwright.model.parent import spec_of
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model
from blockwright.train.bld import BldSettings, Trainee, trainee_of
from blockwright.train.calibration import CALIBRATION, calibrate
from blockwright.train.groups import Means, Work, layers_flops, schedule, training_flops
from blockwright.train.library import train_library
from blockwright.train.one_group import LibraryJob, train_group
from blockwright.train.windows import Batch

LAYERS, HIDDEN, WIDTH, HEADS, KV_HEADS, VOCABULARY = 12, 128, 512, 8, 8, 4096
WIDTHS = tuple(WIDTH * index // 16 for index in range(1, 16))
MIXERS = (Attention(num_kv_heads=4), Attention(num_kv_heads=2), Attention(num_kv_heads=1), LinearMixer())
FFNS = (*(GatedFFN(width=width) for width in WIDTHS), LinearFFN())
SETTINGS = BldSettings(learning_rate=1e-3)
FLOPS_TARGET, TIME_TARGET, DIFFERENCE_TARGET = 10.0, 5.0, 1e-6


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A parent, what learns, and on what."""

    model: PreTrainedModel
    job: LibraryJob
    work: Work

    @property
    def parent(self) -> Model:
        """The parent's spec."""
        return self.job.parent


def main() -> None:
    """Times all ways and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of each candidate (default: 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sample", type=int, default=11, metavar="N", help="one candidate in N has a job (default: 11)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    bench = bench_of(arguments.steps, arguments.device)
    sample = bench.job.trainees[:: arguments.sample]
    device = this_device()
    results = origin("python benchmarks/train/one_pass.py " + " ".join(sys.argv[1:]), device) | {
        "threads": torch.get_num_threads(),
        "work": asdict(bench.work),
        "candidates": len(bench.job.trainees),
        "sampled": len(sample),
        "parent": {"layers": LAYERS, "hidden": HIDDEN, "width": WIDTH, "vocabulary": VOCABULARY},
        "flops": flops_of(bench),
    }
    results |= measure(bench, sample, arguments.rounds)
    write_results(results, as_text(results), arguments.out / f"one-pass_{device.name}_{results['date']}")


def bench_of(num_steps: int, device: str) -> Bench:
    """The parent and its candidates."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    parent = spec_of(config)
    trainees: list[Trainee] = []
    for layer in range(LAYERS):
        trainees += [trainee_of(parent, Candidate(layer=layer, part="mixer", variant=v)) for v in MIXERS]
        trainees += [trainee_of(parent, Candidate(layer=layer, part="ffn", variant=v)) for v in FFNS]
    work = Work(num_steps=num_steps, batch_windows=4, window_tokens=128)
    ids_NT = torch.randint(VOCABULARY, (4 * (num_steps + 1), 128), generator=torch.Generator().manual_seed(0))
    batches = [Batch(ids_BT=ids_BT) for ids_BT in ids_NT.split(4)]
    job = LibraryJob(
        parent=parent,
        trainees=tuple(trainees),
        training=batches[:-1],
        reserved=batches[-1:],
        held_out=batches[-1:],
        settings=SETTINGS,
        device=device,
    )
    return Bench(model=model.to(device), job=job, work=work)


def flops_of(bench: Bench) -> dict[str, float]:
    """Counted for all candidates: by one pass, and by a job for each."""
    parent, tokens, length = bench.parent, bench.work.tokens, bench.work.window_tokens
    students = tokens * sum(training_flops(parent, trainee, bench.work) for trainee in bench.job.trainees)
    layers = tokens * layers_flops(parent, 0, LAYERS, length)
    head = tokens * 2 * parent.hidden_size * parent.vocab_size
    truncated = tokens * sum(layers_flops(parent, 0, t.layer + 1, length) for t in bench.job.trainees)
    return {
        "one pass": layers + students,
        "truncated": truncated + students,
        "full": len(bench.job.trainees) * (layers + head) + students,
    }


def measure(bench: Bench, sample: Sequence[Trainee], rounds: int) -> dict[str, Any]:
    """Seconds for all candidates, each way in turn, and how far what they learn is apart."""
    share = sum(_job_flops(bench, t) for t in sample) / sum(_job_flops(bench, t) for t in bench.job.trainees)
    full_share = len(sample) / len(bench.job.trainees)
    seconds: dict[str, list[float]] = {"one pass": [], "truncated": [], "full": []}
    difference = 0.0
    with tempfile.TemporaryDirectory() as name:
        calibrate(bench.model, bench.parent, bench.job.init, bench.job.training, bench.job.trainees, Path(name))
        calibration = (Path(name) / CALIBRATION).read_bytes()
        for turn in range(rounds):
            folders = {way: Path(name) / f"{turn}-{way}" for way in seconds}
            for folder in folders.values():
                folder.mkdir()
                (folder / CALIBRATION).write_bytes(calibration)
            seconds["one pass"].append(_timed_one_pass(bench, folders["one pass"]))
            seconds["truncated"].append(_timed_jobs(bench, sample, folders["truncated"], is_full=False) / share)
            seconds["full"].append(_timed_jobs(bench, sample, folders["full"], is_full=True) / full_share)
            for trainee in sample:
                one, other = (load_file(folders[w] / f"{trainee.name}.safetensors") for w in ("one pass", "truncated"))
                difference = max(difference, *((one[key] - other[key]).abs().max().item() for key in one))
            print(f"round {turn + 1}: { ({way: times[-1] for way, times in seconds.items()}) }", file=sys.stderr)
    return {"seconds": seconds, "largest_difference": difference}


def _job_flops(bench: Bench, trainee: Trainee) -> float:
    length = bench.work.window_tokens
    return layers_flops(bench.parent, 0, trainee.layer + 1, length) + training_flops(bench.parent, trainee, bench.work)


def _timed_one_pass(bench: Bench, folder: Path) -> float:
    started = time.perf_counter()
    plan = schedule(bench.parent, bench.job.trainees, bench.work, SETTINGS, Means(memory_bytes=math.inf))
    train_library(bench.model, bench.job, plan, folder)
    return time.perf_counter() - started


def _timed_jobs(bench: Bench, sample: Sequence[Trainee], folder: Path, *, is_full: bool) -> float:
    """A job for each of some candidates; one that runs all of the parent runs the layers behind and the head too."""
    model = bench.model
    started = time.perf_counter()
    for trainee in sample:
        if not is_full:
            train_group(model, replace(bench.job, trainees=(trainee,)), folder)
            continue
        with torch.no_grad():
            for batch in bench.job.training:
                x_BTD = model.model.embed_tokens(batch.ids_BT.to(model.device))
                positions = torch.arange(x_BTD.shape[1], device=model.device)[None]
                rotary = model.model.rotary_emb(x_BTD, positions)
                for layer in model.model.layers[trainee.layer + 1 :]:
                    x_BTD = layer(x_BTD, position_ids=positions, position_embeddings=rotary, attention_mask=None)
                model.lm_head(model.model.norm(x_BTD))
        train_group(model, replace(bench.job, trainees=(trainee,)), folder)
    return time.perf_counter() - started


def as_text(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    device, flops, seconds = results["device"], results["flops"], results["seconds"]
    work = results["work"]
    lines = [
        f"# One pass against one job per candidate, {results['date']}",
        "",
        f"`{results['command'].strip()}` at {results['commit']} on {device['model']}, {device['num_cores']} cores, "
        f"{results['threads']} threads; torch {results['software'].get('torch')}.",
        "",
        f"{results['candidates']} candidates in {LAYERS} layers of hidden size {HIDDEN}, {work['num_steps']} steps of "
        f"{work['batch_windows']} × {work['window_tokens']} tokens. {results['sampled']} jobs ran, the rest is by "
        "counted work. Times hold judging too, for which each job runs the parent again; FLOPs are of training alone. "
        "Median of rounds in turn (least to most); a ratio is of times of one round.",
        "",
        "| way | FLOPs | over one pass | seconds for all | over one pass |",
        "|---|---|---|---|---|",
    ]
    for way in flops:
        ratios = [a / b for a, b in zip(seconds[way], seconds["one pass"], strict=True)]
        lines.append(
            f"| {way} | {flops[way]:.3g} | {flops[way] / flops['one pass']:.1f} | {spread(seconds[way])} | "
            f"{spread(ratios)} |"
        )
    lines += ["", f"What both learn differs by at most {results['largest_difference']:.1e}.", ""]
    best = {way: flops[way] / flops["one pass"] for way in ("truncated", "full")}
    times = {way: statistics.median(seconds[way]) / statistics.median(seconds["one pass"]) for way in best}
    for way in best:
        lines.append(f"* {way}: at least {FLOPS_TARGET:.0f} times fewer FLOPs {verdict(best[way] >= FLOPS_TARGET)}; ")
        lines[-1] += f"at least {TIME_TARGET:.0f} times less time {verdict(times[way] >= TIME_TARGET)}."
    lines.append(f"* equal to {DIFFERENCE_TARGET:.0e}: {verdict(results['largest_difference'] <= DIFFERENCE_TARGET)}.")
    return "\n".join(lines) + "\n"


def verdict(is_met: bool) -> str:
    """In a word."""
    return "met" if is_met else "**not met**"


def spread(values: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
