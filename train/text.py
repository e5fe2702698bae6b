"""Text as documents, and which part of them no training ever sees.

The held-out part is fixed by a hash of each document's text, so it is the same on every machine and for every stage,
whatever folder is named, how many files it has, and what is read beside it; equal texts land on one side
(`sources.py` says what a source is).

The source `python` is the exception: its files are parted by their names in the standard library, as they were when
recipes/demo-parent was trained on it. The same files named as a folder are parted by their text.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockwright.errors import InputError
from blockwright.train.hub import parse_name, read_dataset
from blockwright.train.records import read_records
from blockwright.train.sources import PYTHON_SOURCES, Source, files_of, parse_sources, suffixes_told

HELD_OUT_ONE_IN = 20
"""One document in so many is held out."""

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
    is_parted_by_name: bool = False
    """Whether its name says which part it belongs to; failing that its text does."""


def read_documents(text: str) -> list[Document]:
    """Reads every document of the sources; see `stream_documents`.

    Raises:
        InputError: a source is not there, is broken, or there is no text in any of them.
    """
    documents = list(stream_documents(text))
    if not documents:
        raise no_text(text)
    return documents


def stream_documents(text: str) -> Iterator[Document]:
    """Reads the documents of the sources one by one: always the same ones, in the same order.

    A source's text files are read by name, and cut into pieces, a document each: at ``<|endoftext|>`` where they have
    it, else about every 8,192 characters, at a blank line. Pieces of one long file may land in both parts. Files of the
    standard library stay whole. Each record of JSONL, Parquet or a Hugging Face dataset is a document, named by its
    place.

    Raises:
        InputError: a source is not there, or is broken, where it is.
    """
    for source in parse_sources(text):
        yield from _of_dataset(source) if source.is_dataset else _of_files(source)


def no_text(text: str) -> InputError:
    """The error for sources that hold none."""
    return InputError(
        "text",
        got=f"{text} (no text in it)",
        expected=f"text in files ending in {suffixes_told()}",
        remedy="Name a file or a folder with text, or 'python' for the standard library's sources.",
    )


def is_held_out(document: Document) -> bool:
    """Whether a document belongs to the held-out part; blanks round its text do not count."""
    key = document.name if document.is_parted_by_name else document.text.strip()
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % HELD_OUT_ONE_IN == 0


def split(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Parts documents into those for training and those held out.

    Raises:
        InputError: there are too few documents for both parts to hold one.
    """
    training: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if is_held_out(document) else training).append(document)
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


def _of_dataset(source: Source) -> Iterator[Document]:
    name = parse_name(source.place)
    stem = Path(name.name).name if name.folder is not None else "/".join(filter(None, (name.name, name.config)))
    for index, text in read_dataset(source.place, source.field):
        yield Document(name=f"{stem}:{name.split}#{index}", text=text)


def _of_files(source: Source) -> Iterator[Document]:
    files = files_of(source.place)
    is_python = source.place == PYTHON_SOURCES
    for name, path in files.texts:
        whole = Document(
            name=name, text=path.read_text(encoding="utf-8", errors="replace"), is_parted_by_name=is_python
        )
        if not whole.text.strip():
            continue
        if not is_python:
            _check_is_text(source.place, whole)
        yield from [whole] if is_python else _pieces(whole)
    for name, path in files.records:
        for place, text in read_records(path, source.field):
            yield Document(name=f"{name}#{place}", text=text)


def _check_is_text(source: str, document: Document) -> None:
    broken = document.text.count("\ufffd") + document.text.count("\0")
    if broken > _MOST_BROKEN * len(document.text):
        raise InputError(
            "text",
            got=f"{document.name} in {source}: {100 * broken / len(document.text):.0f} % of it no characters",
            expected="text in UTF-8",
            remedy="Convert the file, or take it away.",
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
