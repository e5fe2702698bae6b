"""How fast the chunked losses are beside the naive ones: `python benchmarks/train/chunked_kl.py`, two or three minutes.

For each loss: value and gradients of all logits at once by autograd, and chunked, in turn, round after round; the ratio
of each round's times, its median and its middle half. Sizes are those at which the naive one still fits well. Also the
largest difference between the gradients. Writes benchmarks/results/chunked_kl_<device>_<date>.json and .md.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, origin, write_results
from torch import Tensor
from torch.nn.functional import cross_entropy

from blockwright.hw_profiles.device import this_device
from blockwright.train.chunked_kl import Head, Targets, chunked_losses
from blockwright.train.losses import parse_losses

LOSSES = ("kl", "reverse-kl", "js", "lm")
SIZES = {
    "cpu": ((8192, 64, 4096), (4096, 128, 8192)),
    "cuda": ((8192, 2048, 32768), (4096, 4096, 128256)),
}
"""Tokens, hidden size, vocabulary; four chunks of tokens at the least."""
ROUNDS = {"cpu": 5, "cuda": 15}


def main() -> None:
    """Times every loss at every size and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=sorted(SIZES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [measure(loss, size, arguments.device) for size in SIZES[arguments.device] for loss in LOSSES]
    name = this_device().name if arguments.device == "cpu" else torch.cuda.get_device_name().replace(" ", "-").lower()
    results = origin(f"python benchmarks/train/chunked_kl.py --device {arguments.device}", this_device()) | {
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    results["device"]["accelerator"] = name
    write_results(results, as_text(results), arguments.out / f"chunked_kl_{name}_{results['date']}")


def measure(loss: str, size: tuple[int, int, int], device: str) -> dict[str, Any]:
    """Both ways in turn at one size; times in seconds."""
    num_tokens, width, vocab = size
    generator = torch.Generator().manual_seed(0)
    h_ND, g_ND = (torch.randn(num_tokens, width, generator=generator).to(device) for _ in range(2))
    w_VD, u_VD = (torch.randn(vocab, width, generator=generator).div(width**0.5).to(device) for _ in range(2))
    labels_N = torch.randint(0, vocab, (num_tokens,), generator=generator).to(device)
    h_ND.requires_grad_()
    w_VD.requires_grad_()
    targets = Targets(
        parent=Head(g_ND=g_ND, u_VD=u_VD), num_tokens=num_tokens, labels_N=labels_N, num_labels=num_tokens
    )
    ways: dict[str, Callable[[], Tensor]] = {
        "naive": partial(naive, loss, h_ND, w_VD, targets),
        "chunked": lambda: chunked_losses(h_ND, w_VD, targets, parse_losses(loss))[0],
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    gradients: dict[str, tuple[Tensor, ...]] = {}
    for round_index in range(ROUNDS[device] + 1):
        for way, run in ways.items():
            started = _now(device)
            gradients[way] = torch.autograd.grad(run(), [h_ND, w_VD])
            if round_index:  # the first warms up
                times[way].append(_now(device) - started)
    pairs = zip(gradients["naive"], gradients["chunked"], strict=True)
    ratios = np.array(times["chunked"]) / np.array(times["naive"])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return {
        "loss": loss,
        "tokens": num_tokens,
        "hidden_size": width,
        "vocabulary": vocab,
        "naive_s": float(np.median(times["naive"])),
        "chunked_s": float(np.median(times["chunked"])),
        "ratio": float(median),
        "ratio_low": float(low),
        "ratio_high": float(high),
        "gradient_difference": max(((a - b).norm() / a.norm()).item() for a, b in pairs),
    }


def naive(loss: str, h_ND: Tensor, w_VD: Tensor, targets: Targets) -> Tensor:
    """The loss from all logits at once."""
    z_NV = h_ND @ w_VD.T
    if loss == "lm":
        assert targets.labels_N is not None
        return cross_entropy(z_NV, targets.labels_N)
    assert isinstance(targets.parent, Head)
    log_q_NV = z_NV.log_softmax(-1)
    log_p_NV = (targets.parent.g_ND @ targets.parent.u_VD.T).log_softmax(-1)
    if loss == "kl":
        return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1).mean()
    if loss == "reverse-kl":
        return (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1).mean()
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
    log_m_NV = (0.5 * p_NV + 0.5 * q_NV).log()
    return 0.5 * (p_NV * (log_p_NV - log_m_NV) + q_NV * (log_q_NV - log_m_NV)).sum(-1).mean()


def as_text(results: dict[str, Any]) -> str:
    """The results as a table in Markdown."""
    lines = [
        f"# Chunked losses beside naive ones, {results['device']['accelerator']}, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']}, {results['threads']} threads; fp32; "
        "value and gradients of the child's states and head; on a CPU, processor time.",
        "",
        "| loss | tokens × hidden × vocabulary | naive | chunked | ratio (middle half) | gradients differ by |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['loss']} | {row['tokens']} × {row['hidden_size']} × {row['vocabulary']} "
            f"| {1e3 * row['naive_s']:.1f} ms | {1e3 * row['chunked_s']:.1f} ms "
            f"| {row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) "
            f"| {row['gradient_difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()  # wall time lies where others share the processor


if __name__ == "__main__":
    main()
