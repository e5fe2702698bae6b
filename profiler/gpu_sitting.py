"""A sitting at a GPU: cases one after another, kept in files as they are done, with a reference kernel in between.

work/order.json        what is measured, where and with which versions: going on with anything else is refused
work/step-0000.json    the rows of a case as they were timed, how each went, and the look that was taken before it

A case that fails, for want of memory or of a kernel, leaves no file: it is told, and tried again by the next run.
The drift of the reference kernel is divided out when all is done, for then it is known on both sides of a case. The
first cases are measured again at the end; what differs then is published.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockwright.errors import InputError
from blockwright.files import digest_of, read_json, write_json
from blockwright.hw_profiles.profile import MemoryRow, OperatorRow, TimeRow, WholeRow
from blockwright.profiler.check import describe
from blockwright.profiler.gpu_clock import Drift, GpuTiming, Look, drift_between, local_drift
from blockwright.strict import from_data, to_data

Row = TimeRow | WholeRow | MemoryRow | OperatorRow
Notes = dict[str, Any]
"""How one measurement went, as plain data."""
_ROWS: dict[str, type] = {each.__name__: each for each in (TimeRow, WholeRow, MemoryRow, OperatorRow)}
_LOOK_EVERY = 8
_REPEATED_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One case: it gives rows and how each went."""

    name: str
    measure: Callable[[], Sequence[tuple[Row, GpuTiming | Notes]]]
    is_operator: bool = False
    """Of these there are many, and each is measured for less time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a step gave, as it was timed."""

    name: str
    position: int
    rows: tuple[Row, ...]
    notes: tuple[Notes, ...]
    look_s: float | None
    """What the reference kernel took just before, where it was timed."""
    error: str | None = None
    """Why it gave no rows."""


def open_work(work: Path, order: Any) -> None:
    """Begins a sitting, or goes on with the one whose files are there.

    Raises:
        InputError: those are of something else.
    """
    path = work / "order.json"
    if not path.exists():
        write_json(path, {"order": order})
    elif digest_of(_said(read_json(path)["order"])) != digest_of(_said(order)):
        raise InputError(
            str(work),
            got="what was measured of another order, on another device or with other versions",
            expected="the same, to go on with",
            remedy=f"Name another --out, or remove {work}.",
        )


def with_repeats(steps: Sequence[Step]) -> list[Step]:
    """The first 5 % of the steps once more at the end."""
    again = [replace(step, name=f"again: {step.name}") for step in steps[: num_repeats(len(steps))]]
    return [*steps, *again]


def num_repeats(num_steps: int) -> int:
    """How many steps are measured twice."""
    return math.ceil(_REPEATED_SHARE * num_steps)


def run_steps(
    steps: Sequence[Step],
    work: Path,
    look: Callable[[], float],
    advance: Callable[[str], object],
    release: Callable[[], object],
) -> list[Done]:
    """Measures what was not measured before a kill, and reads the rest.

    Args:
        steps: in order; their places are the names of their files.
        work: see `open_work`.
        look: times the reference kernel.
        advance: is told the name of each step when it is done.
        release: gives back what a step that failed had taken.
    """
    found = []
    for position, step in enumerate(steps):
        path = work / f"step-{position:04d}.json"
        if not path.exists():
            look_s = look() if position % _LOOK_EVERY == 0 else None
            error = _measure(step, look_s, path)
            if error is not None:
                release()
                found.append(Done(name=step.name, position=position, rows=(), notes=(), look_s=look_s, error=error))
        if path.exists():
            found.append(_read(path, position))
        advance(step.name)
    return found


def corrected_rows(done: Sequence[Done]) -> list[list[Row]]:
    """The rows of each step with the drift around it divided out."""
    looks = [Look(position=each.position, time_s=each.look_s) for each in done if each.look_s is not None]
    return [[_divided(row, local_drift(looks, each.position)) for row in each.rows] for each in done]


def drift_of(rows: Sequence[Sequence[Row]], num_steps: int) -> Drift | None:
    """What the repeats say, which stand behind so many steps."""
    times = [[row.time_s for row in step if not isinstance(row, MemoryRow)] for step in rows]
    both = zip(times, times[num_steps:], strict=False)
    pairs = [pair for one, other in both if len(one) == len(other) for pair in zip(one, other, strict=True)]
    return drift_between([one for one, _ in pairs], [other for _, other in pairs])


def is_marked(notes: Notes) -> bool:
    """Whether something held the clock down while a row was measured."""
    return bool(notes.get("throttles")) or bool(notes.get("is_slow_clock"))


def marks_of_steps(done: Sequence[Done]) -> tuple[str, ...]:
    """The rows that something held the clock down for, and what that was."""
    rows = [(row, notes) for each in done for row, notes in zip(each.rows, each.notes, strict=True)]
    return tuple(
        f"{describe(row)}: {', '.join(notes['throttles']) or 'the clock stayed low'} while it was measured"
        for row, notes in rows
        if is_marked(notes) and not isinstance(row, MemoryRow)
    )


def _said(order: Any) -> Any:
    """Without what is None: an older version may not have had the field, and meant the same."""
    if isinstance(order, dict):
        return {key: _said(value) for key, value in order.items() if value is not None}
    return [_said(each) for each in order] if isinstance(order, list | tuple) else order


def _measure(step: Step, look_s: float | None, path: Path) -> str | None:
    """Writes what a step gives, or says why it gives nothing."""
    try:
        measured = step.measure()
    except RuntimeError as error:  # what runtimes raise where memory or a kernel is missing
        return (str(error) or type(error).__name__).splitlines()[0]
    write_json(
        path,
        {
            "name": step.name,
            "look_s": look_s,
            "rows": [[type(row).__name__, to_data(row)] for row, _ in measured],
            "notes": [notes if isinstance(notes, dict) else to_data(notes) for _, notes in measured],
        },
    )
    return None


def _read(path: Path, position: int) -> Done:
    data = read_json(path)
    return Done(
        name=data["name"],
        position=position,
        rows=tuple(from_data(_ROWS[name], fields, str(path)) for name, fields in data["rows"]),
        notes=tuple(data["notes"]),
        look_s=data["look_s"],
    )


def _divided(row: Row, drift: float) -> Row:
    if isinstance(row, MemoryRow):
        return row
    return replace(row, time_s=row.time_s / drift, low_s=row.low_s / drift, high_s=row.high_s / drift)
