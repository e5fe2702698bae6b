"""The flag that gives work to a cluster's workers."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockwright.model.parent import Parent
    from blockwright.pipeline.rounds import Run
    from blockwright.pipeline.score import ScoreOrder


def add_ray(parser: argparse._ActionsContainer, work: str) -> None:
    """Adds ``--ray``; `work` says what the workers do."""
    parser.add_argument(
        "--ray",
        metavar="auto|ADDRESS|local:N",
        help=f"{work} by the workers of a Ray cluster, or by N on this machine; they must see all folders "
        "(default: in this process)",
    )


@contextlib.contextmanager
def scoring_by(where: str | None, parent: "Parent", library: Path, order: "ScoreOrder") -> Iterator["Run | None"]:
    """What runs candidates at a place that ``--ray`` names; None for this process.

    Raises:
        InputError: there are no such workers.
    """
    from blockwright.pipeline.score_tasks import ScoreTasks
    from blockwright.pipeline.workers import workers

    if where is None:
        yield None
        return
    with workers(where) as pool:
        yield ScoreTasks(pool=pool, parent=str(parent.folder.resolve()), library=str(library.resolve()), order=order)
