"""Files that are never half-written, and the digests that tell whether they are still what they were."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from blockwright.errors import InputError

if sys.platform != "win32":
    import fcntl

SUMS = "SHA256SUMS"
"""The file of a folder's digests."""
_UNFINISHED = ".unfinished"
"""Ends the name of a file beside a folder that is being written; its lock is the system's, and ends with its writer."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; renames it to `path` when all went well, else removes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """As `new_file`, for a folder; what stood at `path` is replaced, and goes only when the new one stands there.

    Removes what killed writers of the same folder have left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    with _marked(temporary):
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
                path.rename(aside / path.name)
                temporary.rename(path)
                with _marked(aside):  # and not before: until now it held the only one
                    shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Marks a folder as unfinished, by a file beside it and its lock, which ends with this process."""
    mark = folder.with_name(folder.name + _UNFINISHED)
    early = mark.with_name(f"{mark.name}.early")
    with early.open("w") as stream:
        if _lock(stream):
            early.rename(mark)  # locked before it has its name: others would take it for a dead writer's
        else:
            early.unlink()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _remove_unfinished(path: Path) -> None:
    """Removes the folders beside `path` whose writers were killed; others may be alive, or a user's, and stay."""
    name = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}" + re.escape(_UNFINISHED))  # as tempfile makes them
    for mark in [each for each in path.parent.iterdir() if name.fullmatch(each.name)]:
        with contextlib.suppress(OSError), mark.open("r+") as stream:
            if _lock(stream):
                shutil.rmtree(mark.with_name(mark.name.removesuffix(_UNFINISHED)), ignore_errors=True)
                mark.unlink()


def _lock(stream: IO[str]) -> bool:
    """Takes a file's lock until it is closed; False where another process has it, or the system grants none."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_json(path: Path, data: Any) -> None:
    """Writes JSON, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        InputError: there is no such file, or it holds no JSON.
    """
    try:
        text = path.read_text()
        if not text.strip():
            raise InputError(
                str(path), got="an empty file", expected="JSON", remedy="Check the path, or make it again."
            )
        return json.loads(text)
    except OSError as error:
        raise InputError(
            str(path), got=error.strerror, expected="a file", remedy="Check the path, or run the stage that writes it."
        ) from error
    except ValueError as error:
        raise InputError(
            str(path), got=f"broken JSON ({error})", expected="JSON", remedy="Run the stage that writes it again."
        ) from error


def check_sums(folder: Path, names: Sequence[str], remedy: str) -> None:
    """Compares files with their digests in `SUMS`, a file as sha256sum writes and checks it.

    Raises:
        InputError: one is not there, was changed, or has no digest; names it.
    """
    if not (folder / SUMS).is_file():
        raise InputError(str(folder / SUMS), got="no such file", expected="the digests of the files", remedy=remedy)
    lines = [line.split(maxsplit=1) for line in (folder / SUMS).read_text(errors="replace").splitlines()]
    sums = {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}
    for name in dict.fromkeys([*names, *sums]):
        path = folder / name
        got = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if got is None or sums.get(name) != got:
            raise InputError(
                str(path),
                got="no such file" if got is None else f"a file with the SHA-256 {got[:12]}…",
                expected=f"{sums[name][:12]}…, by {SUMS}" if name in sums else f"a line of {SUMS} for it",
                remedy=f"It was changed or damaged. {remedy}",
            )


def digest_of(data: Any) -> str:
    """The SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_of_files(paths: list[Path]) -> str:
    """The SHA-256 of names and contents of files, and of all files below folders."""
    sha = hashlib.sha256()
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            sha.update(str(file.relative_to(path) if path.is_dir() else file.name).encode())
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()
