"""Holds the files of an engine against their sums before they run, unless that was done since they changed.

A file may have the right size and other bytes: a copy over a bad line, a disk that fails. ONNX Runtime then writes
nonsense, and TensorRT may crash. To read all of a file at each opening would be slow where engines are large: SHA-256
takes 1.4 to 1.6 GB/s (one core of a shared AMD EPYC with SHA instructions, OpenSSL 3.0, the file in memory). So a file
that was right is marked in the user's cache folder by an empty file, whose name is the digest of the sum and of all
that the system shows of a file being written to. What a disk changes on its own after that is not seen here; `compile`,
where it finds an engine that is up to date, reads every byte.
"""

import hashlib
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from blockwright.compile.engine import Engine, StoredFile, check_digests, read_engine
from blockwright.compile.user_cache import cache_folder, is_ours_alone, remove_oldest

SMALL_BYTES = 16_000_000
"""Up to here a file is read each time and leaves no mark: 22 to 38 ms, with both cores busy."""
_SETTLED_S = 2.0
"""Times of files have a grain, of 2 s on FAT: what was written more recently may be written again and show no other."""
_MARKS = re.compile(r"[0-9a-f]{64}")
"""Their names."""
_MOST_MARKS = 256


def read_checked_engine(folder: Path) -> Engine:
    """As `read_engine`, and its graph and weights are held against their sums by `check_once`.

    Raises:
        InputError: one differs too.
    """
    engine = read_engine(folder)
    check_once(folder, engine.files)
    return engine


def check_once(folder: Path, files: Mapping[str, StoredFile]) -> None:
    """Refuses files that hold other bytes than were written, if they changed since they were last found right.

    Args:
        folder: where they are; their sizes are known to be right.
        files: by name.

    Raises:
        InputError: names the file and what to do.
    """
    for name, stored in files.items():
        before = (folder / name).stat()
        marks = None if before.st_size <= SMALL_BYTES else cache_folder("checked")
        mark = None if marks is None else marks / _mark(before, stored)
        if mark is not None and _was_right(mark):
            continue
        started = time.time()
        check_digests(folder, {name: stored})
        written = max(before.st_mtime, before.st_ctime)
        if mark is not None and started - written > _SETTLED_S and _mark((folder / name).stat(), stored) == mark.name:
            with suppress(OSError):  # then it is read again
                _leave(mark)


def _was_right(mark: Path) -> bool:
    """Whether a mark is there that nobody else can have made; it is kept longest of all then."""
    try:
        if not mark.is_file() or not is_ours_alone(mark.parent):
            return False
    except OSError:
        return False
    with suppress(OSError):  # where nobody may write, it is of use all the same
        mark.touch()
    return True


def _leave(mark: Path) -> None:
    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_ours_alone(mark.parent):
        mark.touch()
        remove_oldest(mark.parent, _MARKS, _MOST_MARKS)


def _mark(look: os.stat_result, stored: StoredFile) -> str:
    told = (look.st_dev, look.st_ino, look.st_size, look.st_mtime_ns, look.st_ctime_ns, stored.sha256)
    return hashlib.sha256(repr(told).encode()).hexdigest()
