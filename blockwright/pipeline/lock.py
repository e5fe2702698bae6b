"""Who is at work in a folder: a whole run alone, or stages side by side that do not touch each other's files.

    .lock               held by a run from end to end, by a stage only while it enters or writes the manifest
    .lock-NAME          held by a stage while it is at work
    .lock-NAME.json     which process that is, what it writes and what it reads; of a run, .lock.json

Locks are the system's and end with their process; a note that nobody holds was left by a kill and is removed.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.strict import from_data, to_data

LOCK = ".lock"
_ENTER_S = 2.0
"""How long to wait for a stage that enters at the same moment, which takes milliseconds."""
_TOKEN = secrets.token_hex(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """Who holds a lock."""

    what: str
    process: int
    host: str
    since: str
    token: str = ""
    """The process's own: after a restart, another one may have its number."""
    writes: tuple[str, ...]
    reads: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what} at work here: process {self.process} on {self.host}, since {self.since}"

    @property
    def is_ours(self) -> bool:
        """Whether it is this very process: a run holds its folder while its stages enter."""
        return (self.process, self.host, self.token) == (os.getpid(), socket.gethostname(), _TOKEN)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other run and stage out of a folder; stages of this process may enter.

    Raises:
        InputError: another run or stage is in it; says which.
    """
    with entering(folder, _ENTER_S):
        for _, note in _others(folder):
            raise _refused(folder, note, "nobody else in the folder of a run")
        with _told(_gate(folder), _note("a whole run", (), ())):
            yield


@contextlib.contextmanager
def at_work(folder: Path, name: str, output: Path, reads: Sequence[Path]) -> Iterator[None]:
    """Keeps runs, the same stage, and stages that touch the same files out of a folder.

    Args:
        folder: where the manifest stands.
        name: the stage's.
        output: what it writes.
        reads: what it reads.

    Raises:
        InputError: one of these is at work there; says which.
    """
    lock = FileLock(_of_stage(folder, name), is_singleton=True)
    ours = _note(f"the stage {name}", (output,), reads)
    with contextlib.ExitStack() as stack:
        with entering(folder, _ENTER_S):
            for path, note in _others(folder):
                if path == _of_stage(folder, name):
                    raise _refused(folder, note, "each stage once")
                if _touch(note.writes, (*ours.writes, *ours.reads)) or _touch(ours.writes, note.reads):
                    raise _refused(folder, note, f"nobody who reads or writes what {name} writes or reads")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise _refused(folder, None, "each stage once") from None
            stack.callback(_leave, folder, lock)
            stack.enter_context(_told(_of_stage(folder, name), ours))
        yield


@contextlib.contextmanager
def entering(folder: Path, wait_s: float = -1) -> Iterator[None]:
    """Alone in a folder for a moment, to enter it or to change its manifest; may be nested.

    Args:
        folder: which one; it is made where there is none.
        wait_s: for others who are in it; below 0, for as long as it takes.

    Raises:
        InputError: they did not leave in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_gate(folder), is_singleton=True)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        if not _gate(folder).exists():
            raise InputError(
                str(folder),
                got="no file can be made in it",
                expected="a folder to write in",
                remedy="Name another one.",
            ) from None
        raise _refused(folder, _read(_gate(folder)), "nobody else in the folder of a run") from None
    try:
        yield
    finally:
        lock.release()


def _leave(folder: Path, lock: BaseFileLock) -> None:
    """Lets go of a stage's lock. Its file may be removed, for nobody opens it but within `entering`."""
    with entering(folder):
        if lock.lock_counter == 1:
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _gate(folder: Path) -> Path:
    return folder.resolve() / LOCK


def _of_stage(folder: Path, name: str) -> Path:
    return folder.resolve() / f"{LOCK}-{name}"


def _beside(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.json")


@contextlib.contextmanager
def _told(lock: Path, note: _Note) -> Iterator[None]:
    """A note beside a lock that is held; within the same process, the outermost one's stays."""
    before = _read(lock)
    if before is not None and before.is_ours:
        yield
        return
    write_json(_beside(lock), to_data(note))
    try:
        yield
    finally:
        _beside(lock).unlink(missing_ok=True)


def _note(what: str, writes: Sequence[Path], reads: Sequence[Path]) -> _Note:
    return _Note(
        what=what,
        process=os.getpid(),
        host=socket.gethostname(),
        token=_TOKEN,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        writes=tuple(str(path.resolve()) for path in writes),
        reads=tuple(str(path.resolve()) for path in reads),
    )


def _others(folder: Path) -> Iterator[tuple[Path, _Note]]:
    """The stages of other processes in a folder; notes that a kill left behind are removed."""
    for path in sorted(folder.resolve().glob(f"{LOCK}-*.json")):
        held = path.with_name(path.name.removesuffix(".json"))
        note = _read(held)
        if note is not None and note.is_ours:
            continue
        lock = FileLock(held, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield held, note or _note("a stage that does not say which", (), ())
        else:
            path.unlink(missing_ok=True)
            _leave(folder, lock)


def _read(lock: Path) -> _Note | None:
    """None where there is none, or one that cannot be read: it only makes a message clearer."""
    try:
        return from_data(_Note, read_json(_beside(lock)), str(_beside(lock)))
    except InputError:
        return None


def _touch(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether one of some paths is, holds or lies in one of others."""
    pairs = [(Path(one), Path(other)) for one in some for other in others]
    return any(one.is_relative_to(other) or other.is_relative_to(one) for one, other in pairs)


def _refused(folder: Path, note: _Note | None, expected: str) -> InputError:
    return InputError(
        str(folder),
        got=str(note) if note is not None else "another run at work here, which does not say which",
        expected=expected,
        remedy="Wait until it has ended, or give an --out in another folder: books are kept beside the output.",
    )
