"""Show what candidates there are for a parent, and what it takes to train them.

Trains nothing and reads no weights. A file of candidates names what every layer is offered beside the parent's own
part, and what ranges of layers are offered instead:

  kv_heads: [2, 1]                  or kv_head_shares: [0.5, 0.25]
  windows: [128]                    reaches in tokens, each with every number of KV heads
  ffn_width_shares: [0.75, 0.5]     or ffn_widths: [512, 256]
  has_linear: true
  has_no_op: true
  formats: [fp32, int4-g32]         of those scored and searched with --format, the ones allowed here; left out, all
  overrides:
    - {layers: 0-1, has_no_op: false, ffn_widths: []}

  blockwright space path/to/parent --space space.yaml --tokens 1B
"""

import argparse

from blockwright.cli.space_flags import add_space, read_space_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("parent", help="a checkpoint's folder, or a repository of the Hugging Face hub")
    add_space(parser)
    parser.add_argument("--tokens", default="64k", help="that each candidate would be trained on (default: 64k)")
    parser.add_argument("--json", action="store_true", help="print plain data instead of tables")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    import json

    from blockwright.model.parent import open_parent
    from blockwright.pipeline.space_table import print_space, space_data
    from blockwright.search.space_size import describe_space
    from blockwright.units import parse_quantity

    tokens = int(parse_quantity(arguments.tokens, "tokens", "--tokens"))
    parent = open_parent(arguments.parent).spec
    size = describe_space(parent, read_space_of(arguments, parent))
    if arguments.json:
        print(json.dumps(space_data(size, tokens), indent=1))
    else:
        print_space(size, tokens)
