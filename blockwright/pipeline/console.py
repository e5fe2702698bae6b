"""Words and progress for people, on standard error; standard output is left to results."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_console = Console(stderr=True, highlight=False)


class Advance(Protocol):
    """Moves a bar by one, or to a given step, and may change its text."""

    def __call__(self, text: str | None = None, *, to: int | None = None) -> None: ...


def say(text: str) -> None:
    """Prints a line."""
    _console.print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Shows a bar with the time left.

    Args:
        description: what is being done.
        total: steps in all.
        done: steps that an earlier run has done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(description, total=total, completed=done)

        def advance(text: str | None = None, *, to: int | None = None) -> None:
            words = description if text is None else f"{description}: {text}"
            if to is None:
                bar.update(task, advance=1, description=words)
            else:
                bar.update(task, completed=to, description=words)

        yield advance
