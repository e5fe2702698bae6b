"""What a library takes, as a table for people, as a sentence, and as plain data."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from blockwright.pipeline.library_plan import LibraryCount
from blockwright.units import format_bytes


def count_data(count: LibraryCount) -> dict[str, Any]:
    """The count as plain data."""
    plan = count.plan
    return {
        "groups": [
            {
                "first_layer": group.first,
                "last_layer": group.end - 1,
                "trained": len(group.trainees),
                "memory_bytes": group.memory_bytes,
                "parent_flops": group.parent_flops,
                "student_flops": group.student_flops,
            }
            for group in plan.groups
        ],
        "parent_passes": len(plan.groups),
        "keeps_states": plan.keeps_states,
        "states_bytes": plan.states_bytes,
        "parent_bytes": plan.parent_bytes,
        "calibration_bytes": count.calibration_bytes,
        "memory_bytes": count.needed_bytes,
        "memory_given_bytes": count.memory_bytes,
        "tokens": count.work.tokens,
        "steps": count.work.num_steps,
        "flops": plan.parent_flops + plan.student_flops,
        "flops_per_s": count.flops_per_s,
        "groups_at_once": count.num_at_once,
        "time_s": count.time_s,
    }


def count_words(count: LibraryCount) -> str:
    """The count as a sentence."""
    plan, work = count.plan, count.work
    trained = sum(len(group.trainees) for group in plan.groups)
    passes = len(plan.groups)
    source = f", states between them on disk ({format_bytes(plan.states_bytes)})" if plan.keeps_states else ""
    at_once = f", {count.num_at_once} at once" if count.num_at_once > 1 else ""
    return (
        f"library   {trained} to train on {work.tokens:,} tokens in {passes} pass{'es' * (passes != 1)} of the parent"
        f"{at_once}{source}; {format_bytes(count.needed_bytes)} of {format_bytes(count.memory_bytes)}, "
        f"{plan.parent_flops + plan.student_flops:.3g} FLOPs, about {_duration(count.time_s)}"
    )


def print_count(count: LibraryCount) -> None:
    """A row for each group, then all of it."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for title in ("group", "layers", "trained", "memory", "parent FLOPs", "training FLOPs", "expected"):
        table.add_column(title, justify="right")
    for index, group in enumerate(count.plan.groups):
        flops = group.parent_flops + group.student_flops
        table.add_row(
            str(index + 1),
            str(group.first) if group.end - group.first == 1 else f"{group.first}-{group.end - 1}",
            str(len(group.trainees)),
            format_bytes(group.memory_bytes),
            f"{group.parent_flops:.3g}",
            f"{group.student_flops:.3g}",
            _duration(flops / count.flops_per_s),
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(count_words(count).removeprefix("library   "))
    console.print(f"The timing reached {count.flops_per_s / 1e9:.3g} GFLOP/s.")


def _duration(time_s: float) -> str:
    if time_s < 90:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"
