"""Distil a child from its parent: KL of the next token plus cosine of the hidden states.

Reads a checkpoint that `blockwright realise` wrote and writes another one.

  blockwright distill realised --teacher path/to/parent --text texts/ --tokens 1M --out child
  blockwright distill realised --teacher parent --text texts/ --loss kl+0.5*cosine --eval-every 50 --patience 3
  blockwright distill realised --teacher parent --text texts/ --loss kl --teacher-logits cached --teacher-cache answers

--loss is a sum of terms, each a name or WEIGHT*name:

  kl, reverse-kl, js    of the child's next token from the parent's: forward, backward, Jensen-Shannon
  cosine, mse           of the states that leave each layer from those of the parent's layer
  lm                    of the text itself; makes a child worse as a rule

With --teacher-logits cached the parent is asked of all tokens beforehand, and its likeliest tokens are kept on disk;
terms that compare states still run the parent's layers. KL, that of --eval-every too, is then over these tokens and all
others as one: a lower bound of the whole.

On several GPUs, or processes, each with a share of both models; with whatever number of them, it goes on where it was:

  torchrun --nproc-per-node 8 -m blockwright distill realised --teacher path/to/parent --text texts/ --out child
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from blockwright.cli.flags import add_out, add_packing, add_text, read_tokens
from blockwright.errors import InputError
from blockwright.units import parse_quantity

if TYPE_CHECKING:
    from blockwright.pipeline.distill_order import DistillOrder


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("child", type=Path, help="the child's folder")
    parser.add_argument("--teacher", required=True, help="the parent it was made from")
    add_text(parser)
    add_packing(parser)
    parser.add_argument("--tokens", default="256k", help="to distil on (default: 256k)")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--loss", default="kl+cosine", metavar="SUM", help="what to minimise (default: kl+cosine)")
    loss.add_argument("--temperature", type=float, default=1.0, help="of both when logits are compared (default: 1)")
    loss.add_argument("--js-beta", type=float, default=0.5, help="the parent's share of js's mixture (default: 0.5)")
    loss.add_argument(
        "--layer-map",
        metavar="L,L…",
        help="the parent's layer for each of the child's, from 0 (default: evenly spread)",
    )
    loss.add_argument("--teacher-logits", default="live", choices=("live", "cached"), help="(default: live)")
    loss.add_argument(
        "--top-k", type=int, default=128, help="tokens kept of each of the parent's answers (default: 128)"
    )
    loss.add_argument("--teacher-cache", metavar="FOLDER", help="keep the answers for other runs")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--batch", type=int, default=8, metavar="WINDOWS", help="windows of a step (default: 8)")
    steps.add_argument("--accumulate", type=int, default=1, metavar="PARTS", help="parts of a batch, for less memory")
    steps.add_argument("--checkpoint-activations", action="store_true", help="less memory, a third more time")
    steps.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="of products (default: fp32)")
    steps.add_argument("--device", help="cpu or cuda (default: cpu; under torchrun each rank's own GPU, if any)")
    steps.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"), help="(default: adamw)")
    steps.add_argument("--learning-rate", type=float, default=2e-3, help="at its highest (default: 0.002)")
    steps.add_argument(
        "--schedule", default="cosine", choices=("cosine", "linear", "constant"), help="(default: cosine)"
    )
    steps.add_argument("--warm-up", type=float, default=0.1, metavar="SHARE", help="of all steps (default: 0.1)")
    steps.add_argument("--clip", type=float, default=1.0, metavar="NORM", help="of the gradient (default: 1)")
    judging = parser.add_argument_group("judging, on held-out text")
    judging.add_argument(
        "--eval-every", type=int, default=0, metavar="STEPS", help="measure, and keep the best child; 0 for never"
    )
    judging.add_argument("--patience", type=int, default=0, metavar="TIMES", help="stop when no better so many times")
    judging.add_argument("--quality-tokens", default="16k", help="for the table at the end; 0 for none (default: 16k)")
    judging.add_argument("--json", action="store_true", help="print the table as JSON")
    add_out(parser, "child", "the distilled checkpoint's folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.distill import distill_child
    from blockwright.pipeline.distill_table import print_distilled
    from blockwright.train.sharded import joined

    order = _order_of(arguments)
    with joined() as ranks:
        distilled = distill_child(arguments.child, open_parent(arguments.teacher), order, arguments.out, ranks)
    if ranks.is_first:
        print_distilled(distilled, arguments.out, as_json=arguments.json)


def _order_of(arguments: argparse.Namespace) -> "DistillOrder":
    from blockwright.pipeline.distill_order import DistillOrder, default_device
    from blockwright.pipeline.recipe import check_above_zero, check_at_least
    from blockwright.train.ranks import Ranks

    for flag, least in (
        ("batch", 1),
        ("accumulate", 1),
        ("top_k", 1),
        ("eval_every", 0),
        ("patience", 0),
        ("warm_up", 0),
    ):
        check_at_least(f"--{flag.replace('_', '-')}", getattr(arguments, flag), least)
    for flag in ("learning_rate", "clip"):
        check_above_zero(f"--{flag.replace('_', '-')}", getattr(arguments, flag))
    return DistillOrder(
        text=arguments.text,
        window_tokens=arguments.window,
        tokens=read_tokens(arguments),
        batch_windows=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        masks_documents=arguments.mask_documents,
        loss=arguments.loss,
        temperature=arguments.temperature,
        js_beta=arguments.js_beta,
        layer_map=_layer_map(arguments.layer_map),
        parts=arguments.accumulate,
        recomputes_activations=arguments.checkpoint_activations,
        precision=arguments.dtype,
        optimizer=arguments.optimizer,
        schedule=arguments.schedule,
        warm_up_share=arguments.warm_up,
        most_gradient_norm=arguments.clip,
        eval_steps=arguments.eval_every,
        patience=arguments.patience,
        teacher_logits=arguments.teacher_logits,
        top_k=arguments.top_k,
        cache=arguments.teacher_cache,
        device=arguments.device or default_device(Ranks.of_environment()),
        judging_tokens=_judging_tokens(arguments),
    )


def _judging_tokens(arguments: argparse.Namespace) -> int:
    if arguments.quality_tokens == "0":
        return 0
    return max(2 * arguments.window, int(parse_quantity(arguments.quality_tokens, "tokens", "--quality-tokens")))


def _layer_map(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(layer) for layer in text.split(","))
    except ValueError:
        raise InputError(
            "--layer-map",
            got=repr(text),
            expected="layers of the parent, such as 0,2,5",
            remedy="Write it in this form.",
        ) from None
