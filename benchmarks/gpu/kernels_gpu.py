"""Our Triton kernels on an NVIDIA GPU: what they compute, and how fast: `python benchmarks/gpu/kernels_gpu.py`.

First every kernel against its naive twin; a difference ends the run. Then, beside the rate of a large copy in the same
run: int4 products against fp16 ones by torch (cuBLAS), 1 to 16 rows, single rows by both of our kernels; attention over
the 12 % of a cache that separators and neighbours keep against all of it by the fastest of torch's backends; prompts
likewise. All are captured in CUDA graphs, so that launches do not count, and go round copies of their weights or caches
that are together larger than the L2 cache. Contestants run in turn; ratios are of the same round.

Needs torch with CUDA and Triton 3.6 or later, about 12 GB and a few minutes. `--interpret --small` tries it out
without a GPU, in Triton's interpreter, whose times are worth nothing. Writes kernels_<device>_<date>.json and .md.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before Triton comes in, which decides then.
if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"
# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from kernels_gpu_checks import check_kernels
from kernels_gpu_page import as_text
from kernels_gpu_race import FULL, SMALL, Bench, Run
from provenance import RESULTS, origin, write_results
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from blockwright.compile import kernels
from blockwright.compile.kernel_ops import int4_linear, sparse_decode, sparse_prefill
from blockwright.compile.kernel_twins import far_tokens
from blockwright.compile.triton_launch import launch
from blockwright.compile.triton_package import triton
from blockwright.hw_profiles.device import this_device

BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
UNFORCED = "torch's own choice"
KEPT_SHARE = 0.12
"""Of a cache: what separators and neighbours of ordinary text keep at these lengths."""


def main() -> None:
    """Checks, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument("--interpret", action="store_true", help="on the CPU, by Triton's interpreter")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if not asked.interpret and not torch.cuda.is_available():
        raise SystemExit("No GPU that torch can use is here. --interpret --small tries the script out without one.")
    device, plan = torch.device("cpu" if asked.interpret else "cuda"), SMALL if asked.small else FULL
    torch.manual_seed(0)
    checks = check_kernels(device, is_small=asked.small)
    bench = Bench(device, plan)
    command = "python benchmarks/gpu/kernels_gpu.py" + " --interpret" * asked.interpret + " --small" * asked.small
    accelerator = torch.cuda.get_device_name() if device.type == "cuda" else None
    results = origin(command, this_device()) | {
        "accelerator": accelerator,
        "triton": triton.__version__,
        "checks": checks,
        "copy_bytes_per_s": bench.bytes_per_s,
        "rows": [],
    }
    name = str(accelerator or "interpreter").replace(" ", "-").lower()
    stem = asked.out / f"kernels_{name}_{results['date']}"
    for row in (each for kind in (products, decodes, prefills) for each in kind(bench)):
        results["rows"].append(row)
        with contextlib.redirect_stdout(None):  # whoever stops it keeps what was measured
            write_results(results, as_text(results), stem)
    print(as_text(results))


def products(bench: Bench) -> Iterator[dict[str, Any]]:
    """Int4 in groups of 32 and 128 against fp16."""
    device = bench.device
    for num_inputs, num_outputs in bench.plan.matrices:
        num_weights = num_inputs * num_outputs
        plain = [
            torch.randn(num_outputs, num_inputs, device=device, dtype=torch.float16) * num_inputs**-0.5
            for _ in range(bench.copies(2 * num_weights))
        ]
        packed = {group: _packed(bench, num_inputs, num_outputs, group) for group in (32, 128)}
        for num_rows in bench.plan.rows:
            x = torch.randn(num_rows, num_inputs, device=device, dtype=torch.float16)
            runs: dict[str, list[Run]] = {"fp16": [lambda x=x, w=w: linear(x, w) for w in plain]}
            least_bytes = {"fp16": 2 * num_weights}
            for group, pairs in packed.items():
                name = f"int4-g{group}"
                runs[name] = [lambda x=x, pair=pair: int4_linear(x, *pair) for pair in pairs]
                least_bytes[name] = num_weights // 2 + 2 * num_weights // group
                if num_rows == 1:
                    runs[f"{name} by tiles"] = [_by_tiles(x, pair, group) for pair in pairs]
                    least_bytes[f"{name} by tiles"] = least_bytes[name]
            row = {"what": "product", "inputs": num_inputs, "outputs": num_outputs, "rows": num_rows}
            yield row | bench.race(runs, least_bytes, "fp16")


def _packed(bench: Bench, num_inputs: int, num_outputs: int, group: int) -> list[tuple[Tensor, Tensor]]:
    """Random bytes are codes as good as any."""
    shape, device = (num_outputs, num_inputs // 2), bench.device
    return [
        (
            torch.randint(0, 256, shape, device=device, dtype=torch.uint8),
            torch.rand(num_outputs, num_inputs // group, device=device, dtype=torch.float16) * 0.01,
        )
        for _ in range(bench.copies(num_inputs * num_outputs // 2))
    ]


def _by_tiles(x: Tensor, pair: tuple[Tensor, Tensor], group: int) -> Run:
    """The kernel for many rows, with one."""
    (codes, scales), num_inputs = pair, x.shape[1]
    num_outputs, num_groups = scales.shape
    kernel = kernels.int4_tiles("fp16", group, is_split=False)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    splits = kernels.linear_splits(kernel, 1, num_outputs, num_groups, processors)
    kernel = kernels.int4_tiles("fp16", group, is_split=splits > 1)
    assert num_inputs == num_groups * group

    def run() -> None:
        out = x.new_empty((splits, 1, num_outputs), dtype=torch.float32 if splits > 1 else x.dtype)
        tensors = {"x": x, "codes": codes, "scales": scales, "out": out}
        sizes = {"num_rows": 1, "num_outputs": num_outputs, "num_groups": num_groups, "num_splits": splits}
        launch(kernel, tensors | sizes | {"groups_per_split": -(-num_groups // splits)})
        if splits > 1:
            whole = torch.empty_like(out[0], dtype=x.dtype)
            sums = {"partial": out, "out": whole, "num_values": num_outputs, "num_splits": splits}
            launch(kernels.sum_splits("fp16"), sums)

    return run


def decodes(bench: Bench) -> Iterator[dict[str, Any]]:
    """A compacted cache against the whole one; ours over the whole one tells what compaction alone is worth."""
    plan = bench.plan
    for num_slots in plan.contexts:
        for batch in plan.batches:
            q = _random(bench, batch, plan.heads, plan.head_dim)
            kept = round(KEPT_SHARE * num_slots)
            whole_bytes = 4 * batch * plan.kv_heads * num_slots * plan.head_dim
            whole, few = (_caches(bench, batch, slots) for slots in (num_slots, kept))
            counts = [
                torch.full((batch,), slots, dtype=torch.int32, device=bench.device) for slots in (num_slots, kept)
            ]
            dense_by, dense = fastest(bench, [lambda q=q, kv=kv: _attend(q[:, :, None], *kv, False) for kv in whole])
            runs: dict[str, list[Run]] = {
                "dense": dense,
                "ours, dense": [lambda q=q, kv=kv, c=counts[0]: sparse_decode(q, *kv, c) for kv in whole],
                "sparse": [lambda q=q, kv=kv, c=counts[1]: sparse_decode(q, *kv, c) for kv in few],
            }
            least_bytes = {"dense": whole_bytes, "ours, dense": whole_bytes, "sparse": whole_bytes * kept // num_slots}
            row = {"what": "decode", "slots": num_slots, "kept": kept, "batch": batch, "dense_by": dense_by}
            yield row | bench.race(runs, least_bytes, "dense")


def prefills(bench: Bench) -> Iterator[dict[str, Any]]:
    """A prompt by separators and neighbours against a causal one; bytes bound neither."""
    plan = bench.plan
    for num_tokens in plan.prompts:
        q = _random(bench, 1, plan.heads, num_tokens, plan.head_dim)
        k, v = (_random(bench, 1, plan.kv_heads, num_tokens, plan.head_dim) for _ in range(2))
        far = far_tokens(torch.rand(1, num_tokens, device=bench.device) < KEPT_SHARE)
        starts = torch.zeros(1, dtype=torch.int32, device=bench.device)
        dense_by, dense = fastest(bench, [lambda q=q, k=k, v=v: _attend(q, k, v, True)])
        runs: dict[str, list[Run]] = {
            "dense": dense,
            "sparse": [lambda q=q, k=k, v=v, f=far, s=starts: sparse_prefill(q, k, v, *f, s, plan.neighbours)],
        }
        num_bytes = 2 * (2 * q.numel() + k.numel() + v.numel())
        row = {"what": "prefill", "tokens": num_tokens, "far": int(far[1][0, -1]), "neighbours": plan.neighbours}
        row["dense_by"] = dense_by
        yield row | bench.race(runs, dict.fromkeys(runs, num_bytes), "dense")


def _attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)


def fastest(bench: Bench, runs: list[Run]) -> tuple[str, list[Run]]:
    """The runs by the backend of torch's that takes them and is fastest, and its name; unforced where none does."""
    if not bench.has_gpu:
        return UNFORCED, runs
    takers: dict[str, list[Run]] = {}
    for backend in BACKENDS:

        def forced(run: Run, backend: SDPBackend = backend) -> Run:
            def by_backend() -> None:
                with sdpa_kernel(backend):
                    run()

            return by_backend

        candidates = [forced(run) for run in runs]
        try:
            candidates[0]()
        except RuntimeError:  # it does not take such heads, or has no room
            continue
        takers[backend.name] = candidates
    name = bench.fastest(takers) if takers else UNFORCED
    return name, takers.get(name, runs)


def _random(bench: Bench, *shape: int) -> Tensor:
    return torch.randn(shape, device=bench.device, dtype=torch.float16)


def _caches(bench: Bench, batch: int, slots: int) -> list[tuple[Tensor, Tensor]]:
    plan = bench.plan
    shape = (batch, plan.kv_heads, slots, plan.head_dim)
    copies = bench.copies(4 * batch * plan.kv_heads * slots * plan.head_dim)
    return [(_random(bench, *shape), _random(bench, *shape)) for _ in range(copies)]


if __name__ == "__main__":
    main()
