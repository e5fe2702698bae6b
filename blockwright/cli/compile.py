"""Compile a checkpoint, a child's or a parent's, into an engine.

Writes a folder with the ONNX graph, its weights, the tokenizer and engine.json.

  blockwright compile child --format int4 --out engine
"""

import argparse

from blockwright.cli.flags import add_out


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a repository of the Hugging Face hub")
    parser.add_argument("--target", default="onnxruntime", choices=("onnxruntime",), help="the runtime")
    parser.add_argument("--format", default="fp32", help="fp32, int8-g32, int4-g32, int4-g128 (default: fp32)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="longest sequence (default: the checkpoint's)")
    add_out(parser, "engine", "the engine's folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
    from blockwright.pipeline.recipe import check_at_least, check_formats

    check_formats("--format", [arguments.format])
    check_at_least("--threads", arguments.threads, 1)
    if arguments.context is not None:
        check_at_least("--context", arguments.context, 1)
    order = CompileOrder(format=arguments.format, threads=arguments.threads, num_positions=arguments.context)
    engine = compile_checkpoint(arguments.checkpoint, order, arguments.out)
    print(f"{arguments.out}: {engine.format}, {engine.graph_bytes / 1e6:.2f} MB")
    print(f"next, blockwright generate {arguments.out} --prompt …")
