"""Compile a checkpoint, a child's or a parent's, into an engine.

Writes a folder with the ONNX graph, its weights, the tokenizer and engine.json.

  blockwright compile child --format int4 --out engine
  blockwright compile child --plan plan.json --out engine      # each layer in the format that the plan gives it
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_out
from blockwright.errors import InputError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a repository of the Hugging Face hub")
    parser.add_argument("--target", default="onnxruntime", choices=("onnxruntime",), help="the runtime")
    parser.add_argument("--format", help="of all layers: fp32, int8-g32, int4-g32, int4-g128 (default: fp32)")
    parser.add_argument("--plan", type=Path, help="store each layer as this plan of the checkpoint says")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="longest sequence (default: the checkpoint's)")
    add_out(parser, "engine", "the engine's folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
    from blockwright.pipeline.recipe import check_at_least, check_formats
    from blockwright.search.plan import read_plan

    plan = None if arguments.plan is None else read_plan(arguments.plan)
    if plan is not None and arguments.format is not None:
        raise InputError(
            "--format, --plan",
            got="both",
            expected="one of them, for a plan says the format of each layer",
            remedy="Leave one out.",
        )
    weights = None if plan is not None else "fp32" if arguments.format is None else arguments.format
    if weights is not None:
        check_formats("--format", [weights])
    check_at_least("--threads", arguments.threads, 1)
    if arguments.context is not None:
        check_at_least("--context", arguments.context, 1)
    order = CompileOrder(format=weights, threads=arguments.threads, num_positions=arguments.context)
    engine = compile_checkpoint(arguments.checkpoint, order, arguments.out, plan=plan)
    print(f"{arguments.out}: {engine.format}, {engine.graph_bytes / 1e6:.2f} MB")
    print(f"next, blockwright generate {arguments.out} --prompt …")
