"""Build and train the block library of a parent.

Writes a folder with one safetensors file per trained candidate, index.json, which says how close each comes to the
parent's own layer, and curves.json, its losses step by step. What training made worse, on training text that nothing
learns from, keeps the weights that it began with (--init), and both files say so. Every candidate learns from the same
pass of the parent; where not all of them fit the memory, groups of layers are trained one after the other. What that
takes is counted first: --dry-run prints it and trains nothing.

Examples:
  blockwright library path/to/parent --text texts/ --tokens 1M --out library
  blockwright library path/to/parent --text texts/ --tokens 1B --memory 64GB --device cuda --dry-run
  blockwright library path/to/parent --text texts/ --tokens 1B --ray auto
  blockwright library path/to/parent --text texts/ --coupled --pairs plan.json --start library --out coupled

The last one trains the mixer and the ffn of each layer of a plan together, from what each learnt alone, and takes over
the rest of the library; `blockwright realise` then prefers the pairs. An ffn that stands behind no mixer learns on its
layer's own input only in this way.
"""

import argparse
import json

from blockwright.cli.cluster import add_ray
from blockwright.cli.flags import add_out, add_packing, add_text, read_tokens
from blockwright.cli.init_flags import add_init, read_init
from blockwright.cli.space_flags import add_space, read_space_of
from blockwright.units import parse_quantity


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("parent", help="a checkpoint's folder, or a repository of the Hugging Face hub")
    add_text(parser)
    add_packing(parser)
    add_space(parser)
    add_init(parser)
    parser.add_argument("--tokens", default="64k", help="to train each candidate on (default: 64k)")
    parser.add_argument("--batch", type=int, default=4, metavar="WINDOWS", help="windows of a step (default: 4)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of the optimiser (default: 0.002)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="muon: of matrices only")
    parser.add_argument(
        "--loss",
        choices=("output", "delta"),
        default="output",
        help="to train on: the error as a share of the residual stream, or of what the layer adds (default: output)",
    )
    parser.add_argument(
        "--skip-first-tokens",
        type=int,
        default=0,
        metavar="N",
        help="of each document, tokens that no loss counts (default: 0, as published)",
    )
    parser.add_argument("--per-token", action="store_true", help="divide each token's error by its own square")
    parser.add_argument("--coupled", action="store_true", help="train a layer's mixer and ffn together, as pairs")
    parser.add_argument(
        "--pairs", default="all", metavar="PLAN", help="pairs to train: a plan's, or all (default: all)"
    )
    parser.add_argument("--start", metavar="LIBRARY", help="a library of the parent to begin from and to take over")
    means = parser.add_argument_group("means", "What to build with; the result does not hang on it.")
    means.add_argument(
        "--memory", metavar="SIZE", help="such as 8GB; of each worker with --ray (default: by what is free)"
    )
    means.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    means.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of products; sums are fp32")
    means.add_argument("--checkpoint-steps", type=int, default=200, metavar="N", help="a kill loses at most these")
    add_ray(means, "train layers")
    means.add_argument("--dry-run", action="store_true", help="count memory, work and time, and train nothing")
    means.add_argument("--json", action="store_true", help="with --dry-run: print the count as JSON")
    add_out(parser, "library", "the folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.model.parent import open_parent
    from blockwright.pipeline.library import build_library, count_for
    from blockwright.pipeline.library_plan import LibraryMeans, LibraryOrder
    from blockwright.pipeline.library_table import count_data, print_count
    from blockwright.pipeline.recipe import check_above_zero, check_at_least
    from blockwright.pipeline.tables import print_library

    check_at_least("--batch", arguments.batch, 1)
    check_at_least("--skip-first-tokens", arguments.skip_first_tokens, 0)
    check_at_least("--checkpoint-steps", arguments.checkpoint_steps, 1)
    check_above_zero("--learning-rate", arguments.learning_rate)
    tokens = read_tokens(arguments)
    parent = open_parent(arguments.parent)
    order = LibraryOrder(
        space=read_space_of(arguments, parent.spec),
        text=arguments.text,
        window_tokens=arguments.window,
        tokens=tokens,
        batch_windows=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        loss=arguments.loss,
        skip_first_tokens=arguments.skip_first_tokens,
        is_per_token=arguments.per_token,
        optimizer=arguments.optimizer,
        precision=arguments.precision,
        init=read_init(arguments.init),
        masks_documents=arguments.mask_documents,
        pairs=arguments.pairs if arguments.coupled else None,
        start=arguments.start,
    )
    means = LibraryMeans(
        memory_bytes=None if arguments.memory is None else parse_quantity(arguments.memory, "bytes", "--memory"),
        device=arguments.device,
        checkpoint_steps=arguments.checkpoint_steps,
        ray=arguments.ray,
    )
    if arguments.dry_run:
        count = count_for(parent, order, arguments.out, means)
        print(json.dumps(count_data(count), indent=1)) if arguments.json else print_count(count)
        return
    print_library(build_library(parent, order, arguments.out, means))
