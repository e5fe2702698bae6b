"""Text as documents: where it comes from, and which part no training ever sees.

A source is the word ``python`` (the standard library's own sources, which every Python
installation has), a file, or a folder. The held-out part is fixed by a hash of names, so it
is the same on every machine and for every stage, whatever order files are read in.
"""

import hashlib
import re
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockwright.errors import InputError

PYTHON_SOURCES = "python"
"""The source name that stands for the standard library."""

HELD_OUT_ONE_IN = 20
"""One document in so many is held out."""

_SUFFIXES = {".txt", ".md", ".rst", ".py", ".text"}
_SKIPPED_FOLDERS = {"site-packages", "encodings", "pydoc_data", "__pycache__"}  # tables and prose
_MIN_FILES_TO_SPLIT_BY_FILE = 20
_PIECE_CHARS = 8192
_END_OF_TEXT = "<|endoftext|>"
_MOST_BROKEN = 0.1
"""Stray bytes are passed over."""
_BREAK = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text that is never split between the training and the held-out part."""

    name: str
    text: str


def read_documents(source: str) -> list[Document]:
    """Reads every document of a source, in the order of their names.

    A folder of at least 20 files is split by file. Fewer files are cut into pieces: at
    ``<|endoftext|>`` where they have it, else about every 8,192 characters, at a blank line.

    Raises:
        InputError: the source is no file or folder, or holds no text.
    """
    files = _python_files() if source == PYTHON_SOURCES else _files_of(Path(source))
    named_texts = ((name, path.read_text(encoding="utf-8", errors="replace")) for name, path in files)
    documents = [Document(name=name, text=text) for name, text in named_texts if text.strip()]
    for document in documents if source != PYTHON_SOURCES else ():
        _check_is_text(source, document)
    if 0 < len(files) < _MIN_FILES_TO_SPLIT_BY_FILE:
        documents = [piece for document in documents for piece in _pieces(document)]
    if not documents:
        raise InputError(
            "text",
            got=f"{source} (no text in it)",
            expected=f"text in files ending in {', '.join(sorted(_SUFFIXES))}",
            remedy="Name a file or a folder with text, or 'python' for the standard library's sources.",
        )
    return documents


def is_held_out(name: str) -> bool:
    """Whether the document of that name belongs to the held-out part."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % HELD_OUT_ONE_IN == 0


def split(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Parts documents into those for training and those held out.

    Raises:
        InputError: there are too few documents for both parts to hold one.
    """
    training: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if is_held_out(document.name) else training).append(document)
    if not training or not held_out:
        raise InputError(
            "text",
            got=f"{len(training)} documents for training and {len(held_out)} held out",
            expected="at least one of each",
            remedy=f"Give more text: about one document in {HELD_OUT_ONE_IN} is held out.",
        )
    return training, held_out


def digest(documents: Sequence[Document]) -> str:
    """The SHA-256 of names and texts, in order."""
    sha = hashlib.sha256()
    for document in documents:
        for part in (document.name, document.text):
            data = part.encode()
            sha.update(len(data).to_bytes(8) + data)
    return sha.hexdigest()


def _check_is_text(source: str, document: Document) -> None:
    broken = document.text.count("\ufffd") + document.text.count("\0")
    if broken > _MOST_BROKEN * len(document.text):
        raise InputError(
            "text",
            got=f"{document.name} in {source}: {100 * broken / len(document.text):.0f} % of it no characters",
            expected="text in UTF-8",
            remedy="Convert the file, or take it away.",
        )


def _python_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return [
        (path.relative_to(root).as_posix(), path)
        for path in sorted(root.rglob("*.py"))
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
    ]


def _files_of(path: Path) -> list[tuple[str, Path]]:
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in _SUFFIXES and file.is_file()]
        return [(file.relative_to(path).as_posix(), file) for file in files]
    raise InputError(
        "text",
        got=f"{path} (not there)",
        expected="a file or folder",
        remedy="Check the path, or use 'python' for the standard library's sources.",
    )


def _pieces(document: Document) -> list[Document]:
    has_ends = _END_OF_TEXT in document.text
    texts = document.text.split(_END_OF_TEXT) if has_ends else _cut_at_blank_lines(document.text)
    stripped = [text.strip("\n") for text in texts]
    return [Document(name=f"{document.name}#{index}", text=text) for index, text in enumerate(stripped) if text.strip()]


def _cut_at_blank_lines(text: str) -> list[str]:
    """Cuts at the first blank line after 8,192 characters; failing that a line end; failing that right there."""
    texts: list[str] = []
    start = 0
    while len(text) - start > 2 * _PIECE_CHARS:
        earliest, latest = start + _PIECE_CHARS, start + 2 * _PIECE_CHARS
        cut = _BREAK.search(text, earliest, latest)
        newline = text.find("\n", earliest, latest)
        end = cut.end() if cut else newline + 1 if newline >= 0 else earliest
        texts.append(text[start:end])
        start = end
    return [*texts, text[start:]]
