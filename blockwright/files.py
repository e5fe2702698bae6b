"""Files that are never half-written, and the digests that tell whether they are still what they were."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blockwright.errors import InputError
from blockwright.unfinished import marked, remove_unfinished, temporary_beside

SUMS = "SHA256SUMS"
"""The file of a folder's digests."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; renames it to `path` when all went well, else removes it.

    Removes what killed writers of the same file have left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path)
    temporary = temporary_beside(path)
    with marked(temporary):
        try:
            temporary.touch(mode=0o600, exist_ok=False)
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """As `new_file`, for a folder; what stood at `path` is replaced, and goes only when the new one stands there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path)
    temporary = temporary_beside(path)
    with marked(temporary):
        try:
            temporary.mkdir(mode=0o700)
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                aside = temporary_beside(path)
                aside.mkdir(mode=0o700)
                path.rename(aside / path.name)
                temporary.rename(path)
                with marked(aside):  # and not before: until now it held the only one
                    shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
