"""What a parent of 70 B takes on 8 to 64 GPUs: memory per GPU, hours, energy, of the library, the scores and the GKD.

    python benchmarks/train/plan_70b.py --out benchmarks/results

Nothing is run: FLOPs and bytes are counted from the parent's shape (`blockwright/count.py`), GPUs are as their
datasheet says, and the share of the peak that training reaches is the range that torchtitan publishes for FSDP2 on
H100. The same counting is held against published runs first, printed side by side.

    hours = FLOPs / (GPUs · peak · share)

FLOPs are those the chip executes, 2 for each multiplication and addition: forward F, gradients 2 F, activations
computed anew F; attention over whole windows, 4 · T · heads · head_dim for each token and layer.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from plan_70b_page import Published, Stage, page

from blockwright.count import block_parameters, ffn_matrices, mixer_matrices, parameters
from blockwright.hw_profiles.datasheet_figures import Datasheet, datasheet
from blockwright.llama import LLAMA_8B
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import FFN, Attention, Block, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp
from blockwright.train.distill import GkdSettings
from blockwright.train.memory import Work, predict_memory

LLAMA_70B = replace(
    LLAMA_8B,
    hidden_size=8192,
    num_heads=64,
    layers=(Block(mixer=Attention(num_kv_heads=8), ffn=GatedFFN(width=28672)),) * 80,
)
"""Meta-Llama-3-70B's config.json, as quoted in the scaling book's chapter on training Llama 3."""
GPUS = (8, 16, 32, 64)
WINDOW_TOKENS = 8192
SHARES = (0.33, 0.39)
SHARES_SOURCE = (
    "torchtitan docs/performance.md: Llama 3.1 8B on 8 or 128 H100 by FSDP2 without Float8, 33 % without and 39 % with "
    "torch.compile, network of 400 Gb/s per GPU included"
)
BLD_TOKENS, GKD_TOKENS, SCORE_TOKENS = 1e9, 45e9, 1e6
TOKENS_SOURCE = "Puzzle (arXiv 2411.19146): 1 B for BLD, 45 B for GKD; scores: chosen here, 122 windows"
MIXERS: tuple[Mixer, ...] = (*[Attention(num_kv_heads=n) for n in (8, 4, 2, 1)], LinearMixer(), NoOp())
FFNS: tuple[FFN, ...] = (
    *[GatedFFN(width=round(28672 * share / 256) * 256) for share in (1, 0.87, 0.75, 0.5, 0.25, 0.2, 0.1)],
    LinearFFN(),
    NoOp(),
)
"""Puzzle's space, section 2: 6 × 9 for each layer."""


SPACE_8B = SpaceSettings(kv_heads=(4, 2, 1), ffn_widths=tuple(256 * n for n in (48, 42, 36, 30, 24, 18, 12, 8, 4)))
"""The space by whose size Puzzle's counts for the 8B come out; it names no more of it than the counts."""


def counted_kinds(model: Model, space: SpaceSettings) -> tuple[int, int]:
    """Candidates with weights to train, and pairs of all mixers and ffns, that the search offers in all layers."""
    offered = candidates(model, space)
    trained = [c for c in offered if not isinstance(c.variant, NoOp)]
    own = 2 * len(model.layers)
    pairs = 0
    for layer in range(len(model.layers)):
        here = [candidate.part for candidate in offered if candidate.layer == layer]
        pairs += here.count("mixer") * here.count("ffn")
    return len(trained) - own, pairs


def mixer_flops(model: Model, mixer: Mixer, window: int) -> float:
    """Forward, of a token."""
    scores = 4 * window * model.num_heads * model.head_dim if isinstance(mixer, Attention) else 0
    return sum(2 * rows * columns for rows, columns in mixer_matrices(model, mixer)) + scores


def ffn_flops(model: Model, ffn: FFN) -> float:
    """Forward, of a token."""
    return sum(2 * rows * columns for rows, columns in ffn_matrices(model, ffn))


def layers_flops(model: Model, window: int) -> float:
    """Forward, of a token through all layers."""
    return sum(mixer_flops(model, b.mixer, window) + ffn_flops(model, b.ffn) for b in model.layers)


def head_flops(model: Model) -> float:
    """Forward, of a token's logits."""
    return 2 * model.vocab_size * model.hidden_size


def child_of_51b() -> Model:
    """A child of as many parameters as Nemotron-51B, of Puzzle's blocks: 26 ffns halved, 14 at a tenth, 10 no mixer."""
    blocks = list(LLAMA_70B.layers)
    for layer in range(54, 80):
        blocks[layer] = replace(blocks[layer], ffn=FFNS[3])
    for layer in range(40, 54):
        blocks[layer] = replace(blocks[layer], ffn=FFNS[6])
    for layer in range(44, 54):
        blocks[layer] = replace(blocks[layer], mixer=NoOp())
    return replace(LLAMA_70B, layers=tuple(blocks))


def trained_kinds() -> tuple[Sequence[Mixer], Sequence[FFN]]:
    """What of the space has weights to train, in each layer."""
    own = LLAMA_70B.layers[0]
    mixers = [m for m in MIXERS if m != own.mixer and not isinstance(m, NoOp)]
    return mixers, [f for f in FFNS if f != own.ffn and not isinstance(f, NoOp)]


def library(gpu: Datasheet, num_gpus: int) -> Stage:
    """Each GPU holds a run of the parent's layers and what learns there; states pass from GPU to GPU, in rounds.

    A round trains as many layers per GPU as fit and passes all tokens through the parent once.
    """
    mixers, ffns = trained_kinds()
    own = LLAMA_70B.layers[0]
    frozen = 2 * ffn_flops(LLAMA_70B, own.ffn)
    per_layer = sum(3 * mixer_flops(LLAMA_70B, m, WINDOW_TOKENS) + frozen for m in mixers)
    per_layer += sum(3 * ffn_flops(LLAMA_70B, f) for f in ffns)
    numbers = sum(rows * cols for m in mixers for rows, cols in mixer_matrices(LLAMA_70B, m))
    numbers += sum(rows * cols for f in ffns for rows, cols in ffn_matrices(LLAMA_70B, f))
    states = 12.0 * numbers  # weights and AdamW's two moments in fp32
    parent = 2.0 * parameters(LLAMA_70B) / num_gpus  # bf16
    gradients = 4.0 * 3 * LLAMA_70B.hidden_size * 28672  # of one student at a time
    windows = 4.0 * WINDOW_TOKENS * (6 * LLAMA_70B.hidden_size + 6 * 28672)  # a layer's states; the widest ffn's
    free = gpu.memory_bytes.value - parent - gradients - windows
    at_once = min(int(free // states), -(-80 // num_gpus))
    rounds = -(-80 // (num_gpus * at_once))
    flops = BLD_TOKENS * (80 * per_layer + rounds * layers_flops(LLAMA_70B, WINDOW_TOKENS))
    memory = {
        "parent, bf16, shared out": parent,
        f"students of {at_once} layers": at_once * states,
        "gradients": gradients,
        "activations": windows,
    }
    kept = 2 * BLD_TOKENS * LLAMA_70B.hidden_size / 1e12
    note = f"{rounds} rounds of {at_once} layers per GPU; kept on disk, states would be {kept:.0f} TB for each boundary"
    return _stage("library", gpu, num_gpus, BLD_TOKENS, flops, memory, note, "workers that hold some layers only")


def scores(gpu: Datasheet, num_gpus: int) -> Stage:
    """Every candidate goes through the layers after its own; the parent is shared out over the GPUs of a machine."""
    forward = layers_flops(LLAMA_70B, WINDOW_TOKENS) / 80
    num_kinds = len(MIXERS) + len(FFNS) - 2
    flops = SCORE_TOKENS * sum((80 - layer) * forward + head_flops(LLAMA_70B) for layer in range(80)) * num_kinds
    logits = 4.0 * 2 * WINDOW_TOKENS * LLAMA_70B.vocab_size
    memory = {"parent, bf16, over 8 GPUs": 2.0 * parameters(LLAMA_70B) / 8, "logits of a window, twice": logits}
    return _stage("score", gpu, num_gpus, SCORE_TOKENS, flops, memory, f"{80 * num_kinds} candidates",
                  "a parent shared out over workers")  # fmt: skip


def gkd(gpu: Datasheet, num_gpus: int, tokens: float, is_lean: bool) -> Stage:
    """FSDP2 of child and parent, a window per GPU at a time, activations computed anew, products in bf16.

    `is_lean` gathers weights and keeps states in bf16 too; else memory is what `blockwright distill` would foretell.
    """
    child = child_of_51b()
    flops = 4 * layers_flops(child, WINDOW_TOKENS) + 3 * head_flops(child)
    flops += layers_flops(LLAMA_70B, WINDOW_TOKENS) + head_flops(LLAMA_70B)
    memory = _lean(child, num_gpus) if is_lean else _foretold(child, num_gpus)
    memory["a quarter in reserve"] = sum(memory.values()) / 4
    name = "GKD, bf16 gathers" if is_lean else "GKD, fp32 gathers"
    lacks = "gathers and states in bf16" if is_lean else ""
    return _stage(name, gpu, num_gpus, tokens, tokens * flops, memory, "", lacks)


def _foretold(child: Model, num_gpus: int) -> dict[str, float]:
    """What `--dtype bf16 --checkpoint-activations` takes of each GPU, by `train/memory.py`."""
    settings = GkdSettings(learning_rate=1e-4, checkpoint_steps=1, recomputes_activations=True, precision="bf16")
    work = Work(
        child=child, parent=LLAMA_70B, settings=settings, windows=1, window_tokens=WINDOW_TOKENS, num_ranks=num_gpus,
        has_gpu=True,
    )  # fmt: skip
    found = predict_memory(work)
    kept = {
        "child: weights, a layer's copy in bf16, AdamW": found.child_bytes + found.optimiser_bytes,
        "parent": found.parent_bytes,
        "embeddings, heads and layers, gathered": found.gathered_bytes,
    }
    return kept | {"gradients, states, a layer anew, logits, at their highest": found.total_bytes - sum(kept.values())}


def _lean(child: Model, num_gpus: int) -> dict[str, float]:
    """What it would take with gathers and states in bf16."""
    width = 2.0
    ends = 2 * LLAMA_70B.vocab_size * LLAMA_70B.hidden_size
    layer = block_parameters(LLAMA_70B, LLAMA_70B.layers[0])
    return {
        "child: weights, gradients, AdamW": 16.0 * parameters(child) / num_gpus,
        "parent": width * parameters(LLAMA_70B) / num_gpus,
        "embeddings and heads, gathered": width * 2 * ends,
        "layers, gathered: one of each and the next": width * 4 * layer,
        "what enters each layer, and leaves the parent's": width * 2 * 80 * WINDOW_TOKENS * LLAMA_70B.hidden_size,
        # What attention, norms and a gated ffn keep for their gradients: `train/groups.py`, rounded.
        "a layer computed anew": width * WINDOW_TOKENS * (10 * LLAMA_70B.hidden_size + 4 * 28672),
        "logits: 4 chunks, the head's gradient": 4.0 * 4 * 1024 * LLAMA_70B.vocab_size + 2.0 * ends,
    }


def published() -> list[Published]:
    """Published figures beside what the same counting says."""
    a100, h100 = (datasheet(name).flop_per_s["bf16"].value for name in ("a100_sxm", "h100_sxm"))
    per_70b = 3 * (layers_flops(LLAMA_70B, 8192) + head_flops(LLAMA_70B))
    per_8b = 3 * (layers_flops(LLAMA_8B, 8192) + head_flops(LLAMA_8B))
    titan, puzzle = "torchtitan docs/performance.md", "Puzzle, arXiv 2411.19146"
    theirs = "FLOPs; the share is theirs"
    decoupled, coupled = counted_kinds(LLAMA_8B, SPACE_8B)
    score_flops = 32 * 6 * 16 * 8192 * per_8b / 3
    return [
        Published(what="share of peak, 70B at 331 tokens/s on each of 64 A100", published=51.7,
                  counted=100 * per_70b * 331 / a100, unit="%", source=titan, checks="FLOPs"),
        Published(what="tokens/s of an H100, 8B by FSDP2, at 33 % of peak", published=5762,
                  counted=0.33 * h100 / per_8b, unit="tokens/s", source=titan + ", table 1; at 500 W", checks=theirs),
        Published(what="the same with torch.compile, at 39 %", published=6667,
                  counted=0.39 * h100 / per_8b, unit="tokens/s", source=titan + ", table 1", checks=theirs),
        Published(what="parameters of the parent", published=70, counted=parameters(LLAMA_70B) / 1e9, unit="B",
                  source="the name of Llama-3.1-70B", checks="the shape"),
        Published(what="parameters of the child", published=51, counted=parameters(child_of_51b()) / 1e9, unit="B",
                  source="the name of Nemotron-51B", checks="nothing: so chosen"),
        Published(what="what is trained decoupled, 8B", published=448, counted=decoupled,
                  unit="candidates", source=puzzle, checks="the counting of search/space.py; its widths are chosen so"),
        Published(what="what is trained coupled, 8B", published=2304, counted=coupled, unit="pairs",
                  source=puzzle, checks="the counting of search/space.py; its widths are chosen so"),
        Published(what="scoring the 8B, 4 widths and no-ops, on 2 H100: 16 windows assumed", published=38,
                  counted=score_flops / (2 * h100 * 0.33) / 60, unit="min",
                  source="Model-Optimizer's tutorial; a model is rebuilt for every candidate there",
                  checks="only the order: how many tokens is not said"),
    ]  # fmt: skip


def _stage(
    name: str,
    gpu: Datasheet,
    num_gpus: int,
    tokens: float,
    flops: float,
    memory: dict[str, float],
    note: str,
    lacks: str,
) -> Stage:
    peak = num_gpus * gpu.flop_per_s["bf16"].value
    fast, slow = (flops / (peak * share) / 3600 for share in sorted(SHARES, reverse=True))
    watts = num_gpus * gpu.busy_w.value / 1000
    return Stage(
        stage=name, gpus=num_gpus, tokens=tokens, flops=flops, hours=(fast, slow),
        energy_kwh=(fast * watts, slow * watts), memory_bytes=memory,
        fits=sum(memory.values()) <= gpu.memory_bytes.value, note=note, lacks=lacks,
    )  # fmt: skip


def plan(gpu: Datasheet) -> list[Stage]:
    """All stages on all numbers of GPUs."""
    makers: list[Callable[[int], Stage]] = [
        lambda n: library(gpu, n),
        lambda n: scores(gpu, n),
        lambda n: gkd(gpu, n, GKD_TOKENS, False),
        lambda n: gkd(gpu, n, GKD_TOKENS, True),
        lambda n: gkd(gpu, n, 3.7e9, True),  # 98.8 % of the parent by then: Puzzle, section 1.6 of our notes
    ]
    return [make(num_gpus) for make in makers for num_gpus in GPUS]


def main() -> None:
    """Writes the plan and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100_sxm", help="a device of the datasheet table (default: h100_sxm)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    gpu, day = datasheet(arguments.gpu), f"{datetime.now(UTC):%Y-%m-%d}"
    stages, checks = plan(gpu), published()
    assumptions = (
        f"Share of peak {SHARES[0]:.0%} to {SHARES[1]:.0%}: {SHARES_SOURCE}.",
        f"Tokens: {TOKENS_SOURCE}.",
        f"Windows of {WINDOW_TOKENS} tokens.",
        "Hours are of products in bf16 (`--dtype bf16`), in both ways to gather.",
        "The child's blocks are ours, chosen to come to the parameters of Nemotron-51B.",
    )
    text = page(gpu, stages, checks, assumptions, day)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"plan-70b_{day}.md"
    path.write_text(text)
    fields = {
        "date": day, "gpu": gpu.name, "shares_of_peak": SHARES, "shares_source": SHARES_SOURCE,
        "tokens_source": TOKENS_SOURCE, "published": [_data(check) for check in checks],
        "plan": [_data(stage) for stage in stages],
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(fields, indent=1) + "\n")


def _data(record: Stage | Published) -> dict[str, object]:
    return {name: getattr(record, name) for name in type(record).__slots__}


if __name__ == "__main__":
    main()
