"""Where text comes from: how sources are named, which files they are, and what tells one state from another.

A source is the word ``python`` (the standard library's own sources, which every Python installation has), a file, a
folder, or ``hf:NAME[/CONFIG][:SPLIT]``. Several are joined by commas. Where records have their text in another field
than ``text``, it stands behind the source: ``questions.jsonl[question]``.
"""

import hashlib
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockwright.errors import InputError
from blockwright.files import digest_of, digest_of_files
from blockwright.train.hub import PREFIX, digest_of_dataset, parse_name
from blockwright.train.records import RECORD_SUFFIXES, is_of_records

PYTHON_SOURCES = "python"
"""The source name that stands for the standard library."""

_DEFAULT_FIELD = "text"
_SUFFIXES = {".txt", ".md", ".rst", ".py", ".text"}
_SKIPPED_FOLDERS = {"site-packages", "encodings", "pydoc_data", "__pycache__"}  # tables and prose
_FIELD = re.compile(r"(.+)\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of them."""

    place: str
    field: str

    @property
    def is_dataset(self) -> bool:
        """Whether it is read by the package `datasets`."""
        return self.place.startswith(PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFiles:
    """The files of a source, named from it: text by name, and shards of records by a hash of it.

    Records are read in no order that means anything, for of many shards only the first may be needed.
    """

    texts: list[tuple[str, Path]]
    records: list[tuple[str, Path]]


def parse_sources(text: str) -> tuple[Source, ...]:
    """Reads sources as written in a recipe or behind ``--text``; a path that is there is taken as it stands.

    Raises:
        InputError: a name is empty.
    """
    places = [text] if Path(text).exists() else text.split(",")
    if not all(place.strip() for place in places):
        raise InputError(
            "text", got=repr(text), expected="sources, with commas between them", remedy="Name a file or a folder."
        )
    return tuple(_source(place.strip() if len(places) > 1 else place) for place in places)


def join_sources(places: Sequence[str], field: str | None) -> str:
    """Several names of sources as one, with the field of those that name none."""
    if len(places) == 1 and field is None:
        return places[0]
    parts = [part for place in places for part in ([place] if Path(place).exists() else place.split(","))]
    return ",".join(part if field is None or _FIELD.fullmatch(part) else f"{part}[{field}]" for part in parts)


def local_paths(text: str) -> tuple[Path, ...]:
    """The files and folders that sources are, which no output may replace."""
    sources = parse_sources(text)
    named = [parse_name(s.place).folder if s.is_dataset else Path(s.place) for s in sources]
    return tuple(path for path in named if path is not None and str(path) != PYTHON_SOURCES)


def files_of(place: str) -> SourceFiles:
    """The files of a source that is no dataset.

    Raises:
        InputError: there is no such file or folder.
    """
    if place == PYTHON_SOURCES:
        return SourceFiles(texts=_python_files(), records=[])
    path = Path(place)
    if not path.exists():
        raise InputError(
            "text",
            got=f"{path} (not there)",
            expected="a file or folder",
            remedy="Check the path, or use 'python' for the standard library's sources.",
        )
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    named = [(file.relative_to(path).as_posix() if path.is_dir() else file.name, file) for file in files]
    records = [(name, file) for name, file in named if is_of_records(file)]
    return SourceFiles(
        texts=[(name, file) for name, file in named if file.suffix in _SUFFIXES or (path.is_file() and not records)],
        records=sorted(records, key=lambda item: hashlib.sha256(item[0].encode()).digest()),
    )


def digest_of_sources(text: str) -> str:
    """Tells one state of sources from another, by their files' bytes and their fields, without parsing any."""
    digests: list[list[str]] = []
    for source in parse_sources(text):
        if source.is_dataset:
            digests.append([digest_of_dataset(source.place), source.field])
        else:
            files = files_of(source.place)
            named = sorted([*files.texts, *files.records])
            digests.append([*(name for name, _ in named), digest_of_files([file for _, file in named]), source.field])
    return digest_of(digests)


def suffixes_told() -> str:
    """The endings of files that are read, for messages."""
    return ", ".join(sorted({*_SUFFIXES, *RECORD_SUFFIXES}))


def _source(place: str) -> Source:
    match = None if Path(place).exists() else _FIELD.fullmatch(place)
    return Source(place=match[1], field=match[2]) if match else Source(place=place, field=_DEFAULT_FIELD)


def _python_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return [
        (path.relative_to(root).as_posix(), path)
        for path in sorted(root.rglob("*.py"))
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
    ]
