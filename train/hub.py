"""Hugging Face datasets, read record by record without being downloaded whole, by the package `datasets`."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from blockwright.errors import InputError
from blockwright.files import digest_of, digest_of_files
from blockwright.train.records import text_of

PREFIX = "hf:"
_SAVED = ("dataset_info.json", "dataset_dict.json")
"""What `save_to_disk` leaves in a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """What ``hf:NAME[/CONFIG][:SPLIT]`` names: a dataset of the hub, or of a folder."""

    name: str
    config: str | None
    split: str

    @property
    def folder(self) -> Path | None:
        """The folder that it is; None for the hub."""
        return Path(self.name) if Path(self.name).is_dir() else None


def parse_name(place: str) -> HubName:
    """Reads ``hf:OWNER/NAME/CONFIG:SPLIT`` or ``hf:FOLDER:SPLIT``; the split is ``train`` where none is named.

    Raises:
        InputError: there is no name in it.
    """
    name, _, split = place.removeprefix(PREFIX).partition(":")
    parts = name.split("/")
    is_folder = Path(name).is_dir() and name != ""
    if not is_folder and not all(parts):
        raise InputError(
            "text",
            got=f"{place} (no such folder)",
            expected="hf:OWNER/NAME[/CONFIG][:SPLIT], or hf: and a folder that is there",
            remedy="Correct the name.",
        )
    config = None if is_folder else "/".join(parts[2:]) or None
    return HubName(name=name if is_folder else "/".join(parts[:2]), config=config, split=split or "train")


def read_dataset(place: str, field: str) -> Iterator[tuple[int, str]]:
    """The texts of a dataset with their numbers, in the order of its shards.

    Raises:
        InputError: there is no such dataset, split or field, it is broken, cannot be reached, or the package
            `datasets` is not there.
    """
    wanted, index = parse_name(place), 0
    with_datasets = _datasets()
    try:
        for index, record in enumerate(_open(with_datasets, wanted)):
            text = text_of(record.get(field), f"{place}: record {index}", field, list(record))
            if text.strip():
                yield index, text
    except InputError:
        raise
    except _errors(with_datasets) as error:
        raise InputError(
            f"{place}: after record {index}",
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            expected="a dataset that can be read, with such a configuration and split",
            remedy="Check the name and the network and run it again: what was read before it is kept.",
        ) from error


def digest_of_dataset(place: str) -> str:
    """Tells one state of a dataset from another: its files for a folder, else the revision of the hub's.

    Raises:
        InputError: there is no such dataset, or it cannot be reached.
    """
    wanted = parse_name(place)
    if wanted.folder is not None:
        return digest_of([digest_of_files([wanted.folder]), wanted.split])
    with_datasets = _datasets()
    try:
        builder = with_datasets.load_dataset_builder(wanted.name, wanted.config)
    except _errors(with_datasets) as error:
        raise InputError(
            place, got=str(error), expected="a dataset that can be reached", remedy="Check the name and the network."
        ) from error
    return digest_of([wanted.name, builder.config.name, builder.hash, wanted.split])


def _open(datasets: Any, wanted: HubName) -> Any:
    if wanted.folder is not None and any((wanted.folder / name).exists() for name in _SAVED):
        saved = datasets.load_from_disk(str(wanted.folder))
        return saved[wanted.split] if isinstance(saved, dict) else saved
    return datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)


def _errors(datasets: Any) -> tuple[type[BaseException], ...]:
    """What goes wrong outside of here; the bases are OSError and that of the hub's HTTP client, of whatever name."""
    return (*HfHubHTTPError.__bases__, ValueError, LookupError, datasets.exceptions.DatasetsError)


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            "text",
            got="a Hugging Face dataset without the package `datasets`",
            expected="the extra [data]",
            remedy="Install it: pip install 'blockwright[data]'.",
        ) from None
