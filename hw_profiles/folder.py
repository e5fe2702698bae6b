"""A profile as a folder, written whole or not at all, and read strictly.

profile.json       what the device is, how it was measured, its ceilings, how well the profile foretells;
                   `profile.schema.json` says what may stand in it
measurements.csv   one row per measurement, `table.COLUMNS`
SHA256SUMS         of these two, as sha256sum writes and checks it
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from blockwright.errors import InputError
from blockwright.files import SUMS, check_sums, new_folder, read_json, write_json
from blockwright.hw_profiles.datasheet_figures import known_devices
from blockwright.hw_profiles.datasheet_profile import datasheet_profile
from blockwright.hw_profiles.device import software_digest
from blockwright.hw_profiles.profile import SCHEMA_VERSION, MemoryRow, OperatorRow, Profile, TimeRow, WholeRow
from blockwright.hw_profiles.table import COLUMNS, Row, RowKind, cells_of, kind_of_row, row_of
from blockwright.strict import from_data, to_data

HEAD, TABLE = "profile.json", "measurements.csv"
_ROWS = ("times", "wholes", "memory", "operators")
"""The fields of a profile that stand in the table."""
_COUNTS = "num_rows"
"""By kind, so that a table that lost its end is noticed even where its digest was made anew."""
_SHIPPED = Path(__file__).parent
_AGAIN = "Take an unharmed copy, or measure again with `blockwright profile`."
_DEVIATES = ("time_s", "low_s", "high_s", "num_samples", "num_rejected", "origin")
"""Columns in which one measurement, made twice, may differ."""


def write_profile(profile: Profile, folder: Path) -> None:
    """Writes a profile, whole or not at all.

    Raises:
        InputError: something that is no profile stands there.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / HEAD).exists()):
        raise InputError(
            str(folder),
            got="a file" if folder.is_file() else "a folder with other things in it",
            expected="a new folder, or a profile to replace",
            remedy="Name another one with --out.",
        )
    rows: list[Row] = [row for name in _ROWS for row in getattr(profile, name)]
    counts = Counter(kind_of_row(row) for row in rows)
    head = {name: value for name, value in to_data(profile).items() if name not in _ROWS}
    with new_folder(folder) as temporary:
        write_json(temporary / HEAD, head | {_COUNTS: {kind: counts[kind] for kind in get_args(RowKind)}})
        with (temporary / TABLE).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(COLUMNS), lineterminator="\n")
            writer.writeheader()
            writer.writerows(cells_of(row, software_digest(profile.software)) for row in rows)
        sums = [f"{_digest(temporary / name)}  {name}\n" for name in (HEAD, TABLE)]
        (temporary / SUMS).write_text("".join(sums))


def read_profile(name: str | Path) -> Profile:
    """Reads a profile from its folder, or from the ``profile.json`` in it, or one that ships by its name.

    A device that is known from documents alone has a profile as well, in which nothing is measured.

    Raises:
        InputError: there is none of that name, or it holds what no profile can.
    """
    path = Path(name)
    if not path.exists():
        if str(name) in known_devices():
            return datasheet_profile(str(name))
        if str(name) not in shipped_profiles():
            raise InputError(
                "profile",
                got=str(name),
                expected="a profile's folder, or one of " + ", ".join(shipped_profiles()),
                remedy="Measure this machine with `blockwright profile`.",
            )
        path = _SHIPPED / name
    folder = path if path.is_dir() else path.parent
    data = _read_head(folder / HEAD if path.is_dir() else path)
    for name in (SUMS, TABLE):
        if not (folder / name).is_file():
            raise InputError(str(folder / name), got="no such file", expected=f"{HEAD}, {TABLE}, {SUMS}", remedy=_AGAIN)
    check_sums(folder, (HEAD, TABLE), _AGAIN)
    counts = data.pop(_COUNTS, None)
    if listed := [key for key in _ROWS if key in data]:
        raise InputError(
            f"{folder / HEAD}: {listed[0]}", got="an unknown key", expected=f"rows in {TABLE}", remedy=_AGAIN
        )
    profile = from_data(Profile, data, str(folder / HEAD))
    rows = list(_read_rows(folder / TABLE, software_digest(profile.software)))
    found = Counter(kind_of_row(row) for row in rows)
    if counts != {kind: found[kind] for kind in get_args(RowKind)}:
        raise InputError(
            str(folder / TABLE),
            got=", ".join(f"{number} of kind {kind}" for kind, number in sorted(found.items())) or "no rows",
            expected=f"what {HEAD} says under {_COUNTS}: {counts}",
            remedy=_AGAIN,
        )
    return replace(
        profile,
        times=tuple(row for row in rows if isinstance(row, TimeRow)),
        wholes=tuple(row for row in rows if isinstance(row, WholeRow)),
        memory=tuple(row for row in rows if isinstance(row, MemoryRow)),
        operators=tuple(row for row in rows if isinstance(row, OperatorRow)),
    )


def shipped_profiles() -> list[str]:
    """The names of the profiles that ship with Blockwright: first those measured, then those of datasheets."""
    return [*measured_profiles(), *known_devices()]


def measured_profiles() -> list[str]:
    """The names of the measured profiles that ship with Blockwright."""
    return sorted(head.parent.name for head in _SHIPPED.glob(f"*/{HEAD}"))


def _read_head(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(str(path), got=f"a {type(data).__name__}", expected="a profile's mapping", remedy=_AGAIN)
    if (version := data.get("schema_version")) != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version",
            got="none" if version is None else version,
            expected=f"{SCHEMA_VERSION}, a folder of {HEAD}, {TABLE} and {SUMS}",
            remedy="Files of version 1 lack what is needed now: measure again with `blockwright profile --for PARENT`.",
        )
    return data


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_rows(path: Path, software: str) -> Iterator[Row]:
    """Checks the shape of the table, and each row against the others."""
    lines = _lines(path)
    header, seen = _checked_header(path, next(lines, [])), dict[tuple, int]()
    for number, line in enumerate(lines, start=2):
        place = f"{path}: row {number}"
        if len(line) != len(header):
            raise InputError(place, got=f"{len(line)} cells", expected=f"{len(header)}", remedy=_AGAIN)
        cells = dict(zip(header, line, strict=True))
        row = row_of(cells, place)
        if cells["software"] != software:
            raise InputError(
                f"{place}, column software",
                got=cells["software"],
                expected=f"{software}, the digest of the versions in {HEAD}",
                remedy="Measurements made with other versions must not be mixed: measure again, all of them.",
            )
        key = _identity(row, cells)
        if key in seen:
            raise InputError(
                place, got=f"the same measurement as row {seen[key]}", expected="each once", remedy="Remove one."
            )
        if key:
            seen[key] = number
        yield row


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise InputError(str(path), got="an end in the middle of a row", expected="whole rows", remedy=_AGAIN)
        yield from csv.reader(io.StringIO(text, newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise InputError(str(path), got="bytes that are no text", expected="UTF-8", remedy=_AGAIN) from error
    except csv.Error as error:
        raise InputError(str(path), got=str(error), expected="comma-separated rows", remedy=_AGAIN) from error


def _checked_header(path: Path, header: list[str]) -> list[str]:
    for names, others, word in ((COLUMNS, header, "missing"), (header, COLUMNS, "unknown")):
        for name in names:
            if name not in others:
                raise InputError(
                    f"{path}: row 1, column {name}",
                    got=f"it is {word}",
                    expected="exactly the columns " + ", ".join(COLUMNS),
                    remedy=_AGAIN,
                )
    if len(set(header)) != len(header):
        raise InputError(f"{path}: row 1", got="a column twice", expected="each column once", remedy=_AGAIN)
    return header


def _identity(row: Row, cells: dict[str, str]) -> tuple:
    """What two rows must not share. Rows of memory name no model, so that two of them may well be alike."""
    if isinstance(row, MemoryRow):
        return ()
    apart = () if isinstance(row, WholeRow) else _DEVIATES  # the same random mix of layers may be drawn twice
    return tuple((name, cell) for name, cell in sorted(cells.items()) if name not in apart)
