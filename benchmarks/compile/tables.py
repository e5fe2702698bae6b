"""What embedding and head in integers cost in quality, beside the layers: `python benchmarks/compile/tables.py`.

Each table, or all layers, is rounded as `compile` stores it, in a model that computes in fp32 otherwise, and compared
with the unrounded one on held-out text by KL. Intervals are of 95 %, over documents. What rounding activations adds in
an engine is not in it. Half a minute for each checkpoint on one core.

Writes benchmarks/results/tables_<device>_<date>.json and .md.
"""

import argparse
import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from provenance import REPOSITORY, RESULTS, origin, write_results
from torch import nn
from transformers import PreTrainedModel

from blockwright.compile.blocked import rounded
from blockwright.hw_profiles.device import this_device
from blockwright.model.parent import load_model, open_parent
from blockwright.pipeline.inputs import read_text, windows_of
from blockwright.spec import Format, parse_format
from blockwright.train.quality import compare

FORMATS = ("int8-g32", "int4-g32", "int4-g128")
PARTS = ("embedding", "head", "layers")
WINDOW_TOKENS = 128


def main() -> None:
    """Rounds one part at a time, then what an int4 engine is made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        action="append",
        metavar="CHECKPOINT=TEXT",
        help="and its text; repeatable (default: recipes/demo-parent on the standard library's sources)",
    )
    parser.add_argument("--tokens", type=int, default=16384, help="of held-out text (default: 16384)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    pairs = asked.checkpoint or [f"{REPOSITORY / 'recipes' / 'demo-parent'}=python"]
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        checkpoint, text = pair.split("=", 1)
        rows += _rows(checkpoint, text, asked.tokens)
    device = this_device()
    command = "python benchmarks/compile/tables.py" + "".join(f" --checkpoint {_short(pair)}" for pair in pairs)
    results = origin(f"{command} --tokens {asked.tokens}", device) | {"rows": rows}
    write_results(results, _page(results, device.name), asked.out / f"tables_{device.name}_{results['date']}")


def _short(pair: str) -> str:
    checkpoint, text = pair.split("=", 1)
    return f"{Path(checkpoint).name}={Path(text).name}"


def _rows(checkpoint: str, text: str, num_tokens: int) -> list[dict[str, Any]]:
    parent = open_parent(checkpoint)
    model = load_model(parent)
    length = min(WINDOW_TOKENS, parent.spec.max_positions)
    windows = windows_of(parent, read_text(text).held_out, length=length, num_tokens=num_tokens, seed=0)
    layers = parse_format("int4-g32")
    cases: list[dict[str, Format]] = [{part: parse_format(each)} for part in PARTS for each in FORMATS]
    cases += [
        {"layers": layers, "head": parse_format("int8-g32"), "embedding": parse_format("int8-g32")},
        {"layers": layers, "head": layers},
        {"layers": layers, "head": layers, "embedding": parse_format("int8-g32")},
        {"layers": layers, "head": layers, "embedding": layers},
    ]
    rows: list[dict[str, Any]] = []
    for case in cases:
        if any(width % (each.group_size or 1) for each in case.values() for width in [parent.spec.hidden_size]):
            continue
        quality = compare(_rounded(model, case), model, windows)
        told = {part: str(each) for part, each in case.items()}
        rows.append({"checkpoint": Path(checkpoint).name, "text": Path(text).name, "stored": told} | asdict(quality))
    return rows


def _rounded(model: PreTrainedModel, case: dict[str, Format]) -> PreTrainedModel:
    """A copy whose parts stand for their codes, its head apart from its embedding."""
    child = copy.deepcopy(model)
    head = child.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    head.weight = nn.Parameter(head.weight.detach().clone())
    parts = {
        "embedding": [child.get_input_embeddings()],
        "head": [head],
        "layers": [each for each in child.model.modules() if isinstance(each, nn.Linear)],
    }
    with torch.no_grad():
        for part, weights in case.items():
            for module in parts[part]:
                assert isinstance(module.weight, nn.Parameter)
                codes = rounded(module.weight.numpy().T, weights).T
                module.weight.copy_(torch.from_numpy(codes.copy()))
    return child


def _page(results: dict[str, Any], device_name: str) -> str:
    lines = [
        f"# Embedding and head in integers, {results['date']}",
        "",
        f"`{results['command']}`",
        f"at {results['commit']} on {device_name}: KL in millinats a token from the same model in fp32, with 95 %",
        "intervals over documents, and the loss on the text beside fp32's.",
        "",
        "| checkpoint | text | rounded | KL, mnat | loss, × | same likeliest token |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        stored = ", ".join(f"{part} {each}" for part, each in row["stored"].items())
        kl, loss = row["kl"], row["bits_per_byte_ratio"]
        lines.append(
            f"| {row['checkpoint']} | {row['text']} | {stored} "
            f"| {1e3 * kl['value']:.2f} ({1e3 * kl['low']:.2f} to {1e3 * kl['high']:.2f}) "
            f"| {loss['value']:.4f} ({loss['low']:.4f} to {loss['high']:.4f}) | {row['agreement']['value']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
