"""`blockwright profile --device cuda` from a bare checkout, and on the CPU to try it out.

    python benchmarks/gpu/profile_gpu.py --out hw_profiles/my-gpu --parent recipes/demo-parent
    python benchmarks/gpu/profile_gpu.py --out my-gpu-tensorrt --backend tensorrt --format fp16 --format int4 \
        --parent recipes/demo-parent

`--device cpu --quick` runs the same code without a GPU, and with ONNX Runtime in TensorRT's place; those times are
worth nothing. Without a parent, blocks of a Llama of 8 billion parameters are measured.
"""

import argparse
import sys
from pathlib import Path

# So that a bare checkout will do.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwright.errors import InputError
from blockwright.llama import LLAMA_8B
from blockwright.model.parent import open_parent
from blockwright.pipeline.gpu_profile import GpuOrder, profile_gpu
from blockwright.profiler.gpu_plan import FULL, QUICK
from blockwright.spec import parse_format


def main() -> None:
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the profile")
    parser.add_argument("--parent", help="a checkpoint whose blocks to measure; its weights are not read")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--backend", choices=("torch", "tensorrt"), default="torch", help="who runs blocks and children"
    )
    parser.add_argument(
        "--format", action="append", default=[], help="of layers, repeatable (default: torch's bf16, TensorRT's fp16)"
    )
    parser.add_argument("--quick", action="store_true", help="a few tiny measurements, to try the script out")
    arguments = parser.parse_args()
    try:
        parent = LLAMA_8B if arguments.parent is None else open_parent(arguments.parent).spec
        plan = QUICK if arguments.quick else FULL
        order = GpuOrder(
            parent=parent,
            device=arguments.device,
            plan=plan,
            backend=arguments.backend,
            formats=tuple(map(parse_format, dict.fromkeys(arguments.format))),
        )
        profile_gpu(order, arguments.out)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
