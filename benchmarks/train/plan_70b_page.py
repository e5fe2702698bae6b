"""The plan of `plan_70b.py` for people: what it holds, and how it is printed."""

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.hw_profiles.datasheet_figures import Datasheet

LACKING = """\
## What the code lacks for this

* **Library.** A worker loads the whole parent in fp32 (`train_group`), 282 GB: more than any GPU here has. The plan
  assumes that a worker loads its own layers and that states stream from worker to worker; today they go through shared
  memory all at once (`pipeline/library_tasks.py`), which does for parents and texts that fit in, and where they do not
  every group runs the parent from its embeddings.
* **Scores.** A worker needs the whole parent on its device; the plan shares it out over the GPUs of a machine.
* **GKD.** Products are in bf16 and the parent is kept in it (`--dtype bf16`), but `train/sharded.py` gathers the child
  in fp32 and states between layers are fp32: the rows "fp32 gathers", as `train/memory.py` foretells them, with the
  reserve without which `distill` refuses to begin. The rows "bf16 gathers" are what FSDP2's mixed precision, and states
  in bf16, would take. Each rank loads its shares only (`train/loading.py`); states are written tensor by tensor
  (`train/state.py`), but at the end the first rank gathers the whole child, 204 GB in fp32, in its host's memory.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A figure that others published, and what the same counting says."""

    what: str
    published: float
    counted: float
    unit: str
    source: str
    checks: str
    """What an agreement shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage on so many GPUs."""

    stage: str
    gpus: int
    tokens: float
    flops: float
    hours: tuple[float, float]
    """At the higher and at the lower share of the peak."""
    energy_kwh: tuple[float, float]
    memory_bytes: dict[str, float]
    """Of one GPU, by what takes it; the rest is free for activations."""
    fits: bool
    note: str = ""
    lacks: str = ""
    """What the code would need and has not: the stage cannot be run so today."""


def page(
    gpu: Datasheet, stages: Sequence[Stage], checks: Sequence[Published], assumptions: Sequence[str], day: str
) -> str:
    """The plan for people."""
    peak = gpu.flop_per_s["bf16"]
    lines = [
        f"# A parent of 70 B on 8 to 64 × {gpu.name}, {day}",
        "",
        f"Counted, not run: `python benchmarks/train/plan_70b.py`. Peak {peak.value / 1e12:.1f} TFLOP/s in bf16, "
        f"{gpu.memory_bytes.value / 1e9:.1f} GB, {gpu.busy_w.value:.0f} W ({peak.source}). " + " ".join(assumptions),
        "",
        "## The same counting against published runs",
        "",
        "| figure | published | counted | shows | source |",
        "|---|---|---|---|---|",
        *[
            f"| {c.what} | {c.published:g} {c.unit} | {c.counted:.4g} {c.unit} | {c.checks} | {c.source} |"
            for c in checks
        ],
        "",
        "The share of peak is not foretold: it is published, for an 8B on H100 and for 70B on A100 only. Hours and",
        "GPU-hours of Puzzle's own stages are not in the text we have: no hours below are checked by a run.",
        "",
        "## The plan",
        "",
        "| stage | GPUs | tokens | FLOPs | hours | GPU-hours | MWh | GB per GPU | fits | runs today |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *[_row(stage) for stage in stages],
        "",
        *[f"* {s.stage}, {s.gpus} GPUs: {s.note}." for s in stages if s.note],
        "",
        "Memory of one GPU, GB:",
        "",
        *dict.fromkeys(_memory(s) for s in stages),
        "",
        LACKING,
    ]
    return "\n".join(lines)


def _row(s: Stage) -> str:
    hours = _span(s.hours)
    runs = f"no: lacks {s.lacks}" if s.lacks else "yes" if s.fits else "no"
    return (
        f"| {s.stage} | {s.gpus} | {s.tokens / 1e9:g} B | {s.flops:.2e} | {hours} | "
        f"{_span([hour * s.gpus for hour in s.hours])} | {_span([kwh / 1000 for kwh in s.energy_kwh])} | "
        f"{sum(s.memory_bytes.values()) / 1e9:.0f} | {'yes' if s.fits else 'no'} | {runs} |"
    )


def _span(values: Sequence[float]) -> str:
    return " to ".join(f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in values)


def _memory(s: Stage) -> str:
    parts = "; ".join(f"{name} {size / 1e9:.1f}" for name, size in s.memory_bytes.items())
    return f"* {s.stage}, {s.gpus} GPUs: {parts}"
