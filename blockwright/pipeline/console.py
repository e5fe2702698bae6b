"""Words and progress for people, on standard error; standard output is left to results."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_console = Console(stderr=True, highlight=False)
_LINE_EVERY_S = 30.0
"""How often a log, which cannot show a bar, gets a line."""


class Advance(Protocol):
    """Moves a bar by one, or to a given step, and may change its text."""

    def __call__(self, text: str | None = None, *, to: int | None = None) -> None: ...


def say(text: str) -> None:
    """Prints a line."""
    _console.print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Shows a bar with the time left, or writes a line now and then where nobody watches.

    Args:
        description: what is being done.
        total: steps in all.
        done: steps that an earlier run has done.
    """
    if not _console.is_terminal:
        yield _lines(description, total, done)
        return
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


def _lines(description: str, total: int, done: int) -> Advance:
    position, written_at = done, time.monotonic()
    started_at = written_at

    def advance(text: str | None = None, *, to: int | None = None) -> None:
        nonlocal position, written_at
        position = position + 1 if to is None else to
        if time.monotonic() - written_at >= _LINE_EVERY_S:
            written_at = time.monotonic()
            left_s = (written_at - started_at) * (total - position) / max(1, position - done)
            say(f"{description} {position}/{total}, {left_s:.0f} s left" + ("" if text is None else f": {text}"))

    return advance
