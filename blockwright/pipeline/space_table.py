"""What a space comes to, as tables for people and as plain data for programs. Loads no torch."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from blockwright.search.space_size import SpaceRow, SpaceSize
from blockwright.strict import to_data
from blockwright.units import format_bytes


def print_space(size: SpaceSize, tokens: int) -> None:
    """One row for each run of layers that are offered the same, then what all of it comes to."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for title in ("layers", "part", "candidates", "parameters", "formats"):
        table.add_column(title, justify="right" if title == "parameters" else "left")
    for layers, row in _runs(size):
        counts = "\n".join(f"{count:,}" for count in row.parameters)
        formats = "\n".join(row.formats) or "all scored"
        table.add_row(layers, row.part, "\n".join(row.variants), counts, formats)
    console.print(table)
    console.print(
        f"{size.num_candidates} candidates, {size.num_trained} of them to train; "
        f"10^{size.num_children_log10:.1f} children to choose from."
    )
    console.print(
        f"The library takes {format_bytes(size.library_bytes)}; to train all of it at once with AdamW, "
        f"{format_bytes(size.training_bytes)} for weights, gradients and moments."
    )
    flops = size.training_flops_per_token * tokens
    share = size.parent_flops_per_token / size.training_flops_per_token
    console.print(
        f"On {tokens:,} tokens that is {flops:.3g} floating-point operations in matrices, {share:.1%} of them the "
        "parent's own pass."
    )


def space_data(size: SpaceSize, tokens: int) -> dict[str, Any]:
    """The same as plain data."""
    return to_data(size) | {
        "num_candidates": size.num_candidates,
        "num_trained": size.num_trained,
        "trained_parameters": size.trained_parameters,
        "library_bytes": size.library_bytes,
        "training_bytes": size.training_bytes,
        "tokens": tokens,
        "training_flops": size.training_flops_per_token * tokens,
    }


def _runs(size: SpaceSize) -> list[tuple[str, SpaceRow]]:
    """Rows that say the same for layers that follow each other, joined."""
    found: list[tuple[str, SpaceRow]] = []
    for part in ("mixer", "ffn"):
        rows = [row for row in size.rows if row.part == part]
        starts = [i for i, row in enumerate(rows) if i == 0 or _said(row) != _said(rows[i - 1])]
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            first, last = rows[start].layer, rows[end - 1].layer
            found.append((str(first) if first == last else f"{first}-{last}", rows[start]))
    return found


def _said(row: SpaceRow) -> tuple[object, ...]:
    return row.variants, row.parameters, row.formats
