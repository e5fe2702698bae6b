"""How long TensorRT plans take to build and how large they are: `python benchmarks/compile/tensorrt_plans.py`.

A child of 200 million random weights with three kinds of attention, attention-free layers and three widths, in each
format, then with head and embedding in integers too, for sm86, sm89 and sm120, with both profiles. Needs the extra
[tensorrt-rtx] and no GPU; nothing is run. Two minutes on two cores, seconds with --small. Writes
benchmarks/results/tensorrt-plans_<device>_<date>.json and .md, or tensorrt-plans-decomposed_… of the form for
TensorRT 10.3 (--form decomposed), which TensorRT-RTX builds too.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from provenance import RESULTS, origin, write_results

from blockwright.compile.engine import DATA_FILE, write_graph
from blockwright.compile.tensorrt_build import BuildRequest, build_apart
from blockwright.compile.tensorrt_checks import expected_of, int4_bytes
from blockwright.compile.tensorrt_engine import GRAPH_FILE, PLAN_FILE, flavour_of, takes_one_token, token_ranges
from blockwright.compile.tensorrt_package import Form, Package, find_package
from blockwright.compile.tensorrt_stored import stored_for_tensorrt
from blockwright.count import parameters
from blockwright.hw_profiles.device import this_device
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN, Model, NoOp, parse_format

CASES = (
    {"layers": "fp16"},
    {"layers": "int4-g32"},
    {"layers": "int4-g128"},
    {"layers": "int4-g32", "head": "int4-g32"},
    {"layers": "int4-g32", "head": "int4-g32", "embedding": "int8-g32"},
    {"layers": "int4-g32", "head": "int4-g32", "embedding": "int4-g32"},
)
"""Of what is not named: fp16."""
CAPABILITIES = ("sm86", "sm89", "sm120")
SLOTS = 1024
LAYERS = tuple(
    Block(
        mixer=Attention(num_kv_heads=(4, 2, 1)[index % 3]) if index % 5 else NoOp(),
        ffn=GatedFFN(width=(2816, 2048, 3584, 2816)[index % 4]),
    )
    for index in range(16)
)
CHILD = llama(LAYERS, hidden_size=1024, num_heads=16, head_dim=64, vocab_size=32000, max_positions=SLOTS)


def main() -> None:
    """Builds in every format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="four layers and few words, to try it out")
    parser.add_argument("--form", choices=get_args(Form), default="fused", help="of the networks (default: fused)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    model = replace(CHILD, layers=LAYERS[:4], vocab_size=512) if asked.small else CHILD
    package, device = find_package(("tensorrt_rtx",)), this_device()
    rows = [_row(model, case, package, asked.form) for case in CASES]
    kind = "" if asked.form == "fused" else f"-{asked.form}"
    command = "python benchmarks/compile/tensorrt_plans.py" + (" --small" if asked.small else "")
    command += f" --form {asked.form}" if kind else ""
    results = origin(command, device) | {"tensorrt": package.title, "parameters": parameters(model), "rows": rows}
    stem = asked.out / f"tensorrt-plans{kind}{'-small' * asked.small}_{device.name}_{results['date']}"
    write_results(results, _page(results, device.name), stem)


def _row(model: Model, case: dict[str, str], package: Package, form: Form) -> dict[str, Any]:
    formats = {part: parse_format(text) for part, text in case.items()}
    stored = stored_for_tensorrt(model, formats["layers"], formats.get("head"), formats.get("embedding"))
    flavour = flavour_of(form, stored, SLOTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_graph(stored.model, random_weights(model), SLOTS, flavour, folder)
        request = BuildRequest(
            package=package.name,
            graph=str(folder / GRAPH_FILE),
            plan=str(folder / PLAN_FILE),
            capabilities=CAPABILITIES,
            profiles=token_ranges(SLOTS, takes_one_token(package.name, stored, 1)),
            most_sequences=1,
            expected=expected_of(stored.model, form),
            timing_cache=None,
        )
        built = build_apart(request, package)
        return {
            "stored": case,
            "build_s": built.build_s,
            "weight_bytes": files[DATA_FILE].size_bytes,
            "int4_bytes": int4_bytes(stored.model),
            "plan_bytes": (folder / PLAN_FILE).stat().st_size,
            "census": built.census,
        }


def _page(results: dict[str, Any], device_name: str) -> str:
    lines = [
        f"# TensorRT plans, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']} on {device_name}, by {results['tensorrt']},",
        f"for a child of {results['parameters'] / 1e6:.0f} million weights; nothing was run.",
        "",
        "| stored | built in, s | weights, MB | plan, MB | above 1.1 × weights, MB (6 wanted) |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        weights, plan = row["weight_bytes"] / 1e6, row["plan_bytes"] / 1e6
        sizes = f"{weights:.1f} | {plan:.1f} | {plan - 1.1 * weights:.1f}"
        stored = ", ".join(f"{part} {text}" for part, text in row["stored"].items())
        lines.append(f"| {stored} | {row['build_s']:.1f} | {sizes} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
