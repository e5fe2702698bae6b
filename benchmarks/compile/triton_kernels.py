"""What our Triton kernels take on each GPU, as their compiler says: `python benchmarks/compile/triton_kernels.py`.

Registers of a thread, shared memory of a block, and bytes that spill from registers, for eight GPUs of which none
need be here; nothing is run. Needs the extra [triton]. Twenty minutes on two busy cores, one with --small.
Writes benchmarks/results/triton-kernels_<date>.json and .md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from provenance import RESULTS, origin, write_results

from blockwright.compile.kernel_build import CAPABILITIES
from blockwright.compile.kernel_files import Manifest, catalogue, write_kernels
from blockwright.hw_profiles.device import this_device
from blockwright.strict import to_data

HEADS = ((128, 4), (64, 4), (64, 1), (80, 1), (256, 4))
"""Channels, and query heads per KV head: Llama 3, Mistral and Qwen; Llama 3.2 1B; a parent without shared heads; a size
that is no power of two; the largest."""
KEPT = (
    *("name", "capability", "target", "block_threads", "shared_bytes", "num_registers", "spill_store_bytes"),
    *("spill_load_bytes", "stack_bytes", "ptx_version"),
)
"""Of what a manifest says of each kernel."""


def main() -> None:
    """Compiles everything for every GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one type, one kind of head and two GPUs, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    wanted = catalogue(("fp16",), HEADS[:1]) if asked.small else catalogue(("fp16", "bf16"), HEADS)
    capabilities = ("sm87", "sm90") if asked.small else CAPABILITIES
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_kernels(
            wanted, capabilities, Path(folder) / "kernels", lambda each: print(each.capability, each.name, flush=True)
        )
    command = "python benchmarks/compile/triton_kernels.py" + " --small" * asked.small
    results = origin(command, this_device()) | as_data(manifest)
    write_results(results, as_text(results, manifest, capabilities), asked.out / f"triton-kernels_{results['date']}")


def as_data(manifest: Manifest) -> dict[str, Any]:
    """The manifest without how to launch, which is the same on every GPU."""
    rows = [{key: value for key, value in to_data(each).items() if key in KEPT} for each in manifest.kernels]
    tiles = {each.name: each.constants for each in manifest.kernels}
    return {"triton": manifest.triton, "ptxas": manifest.ptxas, "constants": tiles, "rows": rows}


def as_text(results: dict[str, Any], manifest: Manifest, capabilities: tuple[str, ...]) -> str:
    """A row per kernel, a column per GPU."""
    cells = {(each.name, each.capability): each for each in manifest.kernels}
    spilling = [each for each in manifest.kernels if each.spill_store_bytes + each.spill_load_bytes]
    versions = dict.fromkeys(manifest.ptxas.values())
    assemblers = " and ".join(
        f"{each} for {', '.join(name for name, version in manifest.ptxas.items() if version == each)}"
        for each in versions
    )
    spilled = f"{len(spilling)} of them spill registers" + (" (marked with the bytes)." if spilling else ".")
    by = f"Triton {manifest.triton}; ptxas {assemblers}"
    lines = [
        f"# Our Triton kernels as compiled, {results['date']}",
        "",
        f"`{results['command']}` at {results['commit']}; {by}. Nothing was run.",
        "",
        f"Registers of a thread / KiB of shared memory of a block; {len(manifest.kernels)} compiled, {spilled}",
        "",
        "| kernel | " + " | ".join(capabilities) + " |",
        "|---|" + "---|" * len(capabilities),
    ]
    for name in dict.fromkeys(each.name for each in manifest.kernels):
        row = []
        for capability in capabilities:
            each = cells[name, capability]
            spilled = each.spill_store_bytes + each.spill_load_bytes
            row.append(f"{each.num_registers} / {each.shared_bytes / 1024:.1f}" + f" **{spilled} B**" * bool(spilled))
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
