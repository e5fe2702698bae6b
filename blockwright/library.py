"""The block library on disk: one safetensors file per trained candidate, and an index that says what each is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.spec import Candidate, Model
from blockwright.strict import from_data, to_data

INDEX = "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One trained candidate, with its error on held-out text against the parent's layer.

    The normalised mean squared error divides by the mean square of the layer's output; that of the delta by the
    mean square of what the layer adds to its input.
    """

    candidate: Candidate
    file: str
    initial_nmse: float
    nmse: float
    initial_delta_nmse: float
    delta_nmse: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """All candidates of a parent; one without an entry needs no training: it is nothing, or the parent's own."""

    parent: Model
    parent_folder: str
    candidates: tuple[Candidate, ...]
    entries: tuple[Entry, ...]
    trained_tokens: int
    settings: dict[str, Any]


def write_library(library: Library, folder: Path) -> None:
    """Writes the index; the candidates' files stand there already."""
    write_json(folder / INDEX, to_data(library))


def read_library(folder: Path) -> Library:
    """Reads a library's index.

    Raises:
        InputError: there is none, it is broken, or a candidate's file is missing.
    """
    library = from_data(Library, read_json(folder / INDEX), str(folder / INDEX))
    for entry in library.entries:
        if not (folder / entry.file).exists():
            raise InputError(
                f"{folder / INDEX}",
                got=f"no file {entry.file}",
                expected="a file for every trained candidate",
                remedy="Build the library again.",
            )
    return library
