"""The user's cache folder: what was made or found out on this machine, and may be lost at any time.

`$XDG_CACHE_HOME/blockwright`, or `~/.cache/blockwright` where that is unset.
"""

import contextlib
import os
import re
import stat
import sys
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Where a kind of thing is kept, not made yet; None for somebody without a home."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        cache = told if told.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "blockwright" / name if cache.is_absolute() else None


def is_ours_alone(folder: Path) -> bool:
    """Whether nobody else can put programs there for us to run, or the folder itself."""
    if sys.platform == "win32":
        return True  # a home is its user's there
    own = folder.stat()
    if own.st_uid != os.geteuid() or own.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    above = (each.stat().st_mode for each in folder.resolve().parents)
    return not any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in above)


def remove_oldest(folder: Path, own: re.Pattern[str], most_files: int, most_bytes: int | None = None) -> None:
    """Removes the files that were touched longest ago until what is left is few and small enough.

    Args:
        folder: where they are.
        own: the names of those that may go. Others, as what a writer has not renamed yet, stay and are not counted.
        most_files: that stay.
        most_bytes: in all; None where they are empty.
    """
    looks: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes too
            look = path.lstat()
            if own.fullmatch(path.name) and stat.S_ISREG(look.st_mode):
                looks.append((look.st_mtime, look.st_size, path))
    num_bytes = 0
    for index, (_, size, path) in enumerate(sorted(looks, reverse=True)):
        num_bytes += size
        if index >= most_files or (most_bytes is not None and num_bytes > most_bytes):
            path.unlink(missing_ok=True)
