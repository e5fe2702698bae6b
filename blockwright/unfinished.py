"""Marks beside what is being written, by which the next writer tells what a killed one left, and removes it.

A mark is a file that its writer holds locked. The system frees the lock when the writer ends, however it ends, so no
process number must be trusted, which another process may have by then. But a lock may hold within one machine, or one
mount, only (NFS with ``local_lock``, FUSE): so a mark says which system it was made by, since its start, and on which
file system, as that system numbers it. Where both are the same, locks are shared. What is marked by anybody else,
another user too, stays; so does what a machine left when it went down.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

_ENDING = ".unfinished"
_TOKEN = re.compile("[0-9a-f]{8}")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def temporary_beside(path: Path) -> Path:
    """A name beside `path` that nobody has, and that `remove_unfinished` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def marked(temporary: Path) -> Iterator[None]:
    """Marks a file or a folder as unfinished, there already or not; without effect where no lock is granted.

    Args:
        temporary: its name, of `temporary_beside`.
    """
    if sys.platform == "win32":  # which grants none, nor removes a file that is open
        yield
        return
    name, _, token = temporary.name[1:].rpartition(".")
    mark = temporary.with_name(_marks_of(name) + token + _ENDING)
    with mark.open("x") as stream:
        if _lock(stream):
            with contextlib.suppress(OSError):  # of a full disk; a mark that does not say where it is from stays
                os.write(stream.fileno(), _place(stream).encode())
        else:
            mark.unlink()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def is_left_by_writer(name: str, of: Iterable[str]) -> bool:
    """Whether a name is one of those that a writer of a file makes beside it, which stay where it is killed.

    Args:
        name: to judge.
        of: the names of files.
    """
    start, _, token = name.removesuffix(_ENDING).rpartition(".")
    starts = {_marks_of(each) if name.endswith(_ENDING) else f".{each}." for each in of}
    return _TOKEN.fullmatch(token) is not None and f"{start}." in starts


def remove_unfinished(path: Path) -> None:
    """Removes what killed writers of `path` left beside it; others may be alive, or a user's, and stay."""
    start = _marks_of(path.name)
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(start) and name.endswith(_ENDING)]
    except OSError:  # a folder that may be written to and not read
        return
    for name in names:
        token = name[len(start) : -len(_ENDING)]
        if not _TOKEN.fullmatch(token):
            continue
        mark = path.with_name(name)
        with contextlib.suppress(OSError, UnicodeDecodeError), mark.open("r+") as stream:
            if _lock(stream) and _is_ours(stream):
                _remove(path.with_name(f".{path.name}.{token}"))
                mark.unlink()


def _marks_of(name: str) -> str:
    """What the names of a file's marks begin with; short, for names have a limit, and the file's may be near it."""
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}."


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(stream: IO[str]) -> bool:
    """Takes a file's lock until it is closed; False where another process has it, or the system grants none."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_ours(stream: IO[str]) -> bool:
    """Whether a mark was made by this user and where its lock is ours to trust. One just begun says nothing yet."""
    is_own = sys.platform != "win32" and os.fstat(stream.fileno()).st_uid == os.geteuid()
    return is_own and stream.read() == _place(stream)


def _place(stream: IO[str]) -> str:
    """The system, since its start, and the file system: locks on one file are shared by who sees the same of both."""
    return f"{_system()} {os.fstat(stream.fileno()).st_dev}\n"


@functools.cache
def _system() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode():x}"
