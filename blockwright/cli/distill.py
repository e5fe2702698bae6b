"""Distil a child from its parent: KL of the next token plus cosine of the hidden states.

Reads a checkpoint that `blockwright realise` wrote and writes another one.

  blockwright distill realised --teacher path/to/parent --text texts/ --tokens 1M --out child

On several GPUs, or processes, each with a share of both models; with whatever number of them, it goes on where it was:

  torchrun --nproc-per-node 8 -m blockwright distill realised --teacher path/to/parent --text texts/ --out child
"""

import argparse
from pathlib import Path

from blockwright.cli.flags import add_out, add_text, read_tokens


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("child", type=Path, help="the child's folder")
    parser.add_argument("--teacher", required=True, help="the parent it was made from")
    add_text(parser)
    parser.add_argument("--tokens", default="256k", help="to distil on (default: 256k)")
    parser.add_argument("--batch", type=int, default=8, metavar="WINDOWS", help="windows of a step (default: 8)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of AdamW (default: 0.002)")
    parser.add_argument("--cosine-weight", type=float, default=1.0, help="of the hidden states' loss (default: 1)")
    add_out(parser, "child", "the distilled checkpoint's folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.distill import DistillOrder, distill_child
    from blockwright.pipeline.recipe import check_above_zero, check_at_least
    from blockwright.train.sharded import joined

    check_at_least("--batch", arguments.batch, 1)
    check_above_zero("--learning-rate", arguments.learning_rate)
    check_at_least("--cosine-weight", arguments.cosine_weight, 0)
    order = DistillOrder(
        text=arguments.text,
        window_tokens=arguments.window,
        tokens=read_tokens(arguments),
        batch_windows=arguments.batch,
        learning_rate=arguments.learning_rate,
        cosine_weight=arguments.cosine_weight,
        seed=arguments.seed,
    )
    with joined() as ranks:
        distill_child(arguments.child, open_parent(arguments.teacher), order, arguments.out, ranks)
    if ranks.is_first:
        print(f"{arguments.out}: next, blockwright compile {arguments.out}")
