"""The block library on disk: one safetensors file per trained candidate, and an index that says what each is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.spec import Block, Candidate, Format, Model
from blockwright.strict import from_data, to_data

INDEX = "index.json"
CURVES = "curves.json"
"""What each trained candidate's losses were, step by step."""

Kept = Literal["trained", "initial"]
"""Which weights stand in a file: what training made of them, or those that it began with, where they are better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One trained candidate, with its error on held-out text against the parent's layer.

    The normalised mean squared error divides by the mean square of the layer's output; that of the delta by the
    mean square of what the layer adds to its input.
    """

    candidate: Candidate
    file: str
    initial_nmse: float
    """Before training."""
    nmse: float
    """Of the weights that are kept."""
    initial_delta_nmse: float
    delta_nmse: float
    trained_nmse: float | None = None
    """After training, which may be worse than before; None where nothing was learnt, or what was gives no numbers."""
    trained_delta_nmse: float | None = None
    kept: Kept = "trained"
    stopped_at: int | None = None
    """The batch at which its loss was no number; it has the last weights that were kept before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEntry:
    """A mixer and an ffn of one layer that were trained together, with their errors as in `Entry`.

    A plan that holds both gets these weights, rather than those that each learnt alone.
    """

    layer: int
    block: Block
    file: str
    initial_nmse: float
    nmse: float
    initial_delta_nmse: float
    delta_nmse: float
    trained_nmse: float | None = None
    trained_delta_nmse: float | None = None
    kept: Kept = "trained"
    stopped_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """All candidates of a parent; one without an entry needs no training: it is nothing, or the parent's own."""

    parent: Model
    parent_folder: str
    candidates: tuple[Candidate, ...]
    entries: tuple[Entry, ...]
    trained_tokens: int
    settings: dict[str, Any]
    blocks: tuple[BlockEntry, ...] = ()
    """Pairs that were trained together."""
    formats: tuple[tuple[Format, ...], ...] = ()
    """That each layer may be stored in, as its space says: of a layer none for any, none at all for any in all."""

    def __post_init__(self) -> None:
        if self.formats and len(self.formats) != len(self.parent.layers):
            raise ValueError(f"formats for each of the {len(self.parent.layers)} layers, or for none")

    @property
    def files(self) -> tuple[str, ...]:
        """Of all that was trained."""
        return tuple(entry.file for entry in (*self.entries, *self.blocks))


def write_library(library: Library, folder: Path) -> None:
    """Writes the index; the candidates' files stand there already."""
    write_json(folder / INDEX, to_data(library))


def read_library(folder: Path) -> Library:
    """Reads a library's index.

    Raises:
        InputError: there is none, it is broken, or a candidate's file is missing.
    """
    library = from_data(Library, read_json(folder / INDEX), str(folder / INDEX))
    for file in library.files:
        if not (folder / file).exists():
            raise InputError(
                f"{folder / INDEX}",
                got=f"no file {file}",
                expected="a file for every trained candidate",
                remedy="Build the library again.",
            )
    return library
