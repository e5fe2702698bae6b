"""Records in files: JSONL, plain or gzipped, and Parquet. Each record is one document, the text in one field.

Nothing is passed over but blank texts: the first record that cannot be read ends the reading, with its place.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from blockwright.errors import InputError

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_MOST_FIELDS_TOLD = 8
_PARQUET_ROWS = 1024
"""Rows held at once."""


def is_of_records(path: Path) -> bool:
    """Whether a file's name says that it holds records."""
    return path.name.endswith(RECORD_SUFFIXES)


def read_records(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The texts of a file, with the line (from 1) or the row (from 0) that each stands in.

    Raises:
        InputError: names the file, and the line or row, that is broken or has no text in that field.
    """
    texts = _parquet(path, field) if path.suffix == ".parquet" else _jsonl(path, field)
    return ((place, text) for place, text in texts if text.strip())


def text_of(value: object, place: str, field: str, fields: list[str]) -> str:
    """What stands in a record's field.

    Raises:
        InputError: it is no text, or the record has no such field.
    """
    if isinstance(value, str):
        return value
    told = ", ".join(fields[:_MOST_FIELDS_TOLD]) + (", …" if len(fields) > _MOST_FIELDS_TOLD else "")
    raise InputError(
        place,
        got=f"{type(value).__name__} in the field {field!r}" if field in fields else f"the fields {told or 'none'}",
        expected=f"text in the field {field!r}",
        remedy="Name the field that holds the text with --text-field, or take the record away.",
    )


def _jsonl(path: Path, field: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _text_of_line(line, f"{path}:{number}", field)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken(f"{path}:{number + 1}", f"broken gzip ({error})", "a whole gzip file") from error
    except OSError as error:
        raise _broken(f"{path}:{number + 1}", error.strerror or str(error), "a file that can be read") from error


def _text_of_line(line: bytes, place: str, field: str) -> str:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _broken(place, f"a byte that is no UTF-8 ({error.reason} at byte {error.start})", "UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise _broken(place, f"broken JSON ({error})", "one JSON object") from error
    if not isinstance(record, dict):
        raise _broken(place, f"a JSON {type(record).__name__}", "one JSON object")
    return text_of(record.get(field), place, field, list(record))


def _parquet(path: Path, field: str) -> Iterator[tuple[int, str]]:
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            fields = file.schema_arrow.names
            if field not in fields:
                text_of(None, str(path), field, fields)
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield row, text_of(value, f"{path}: row {row}", field, fields)
                    row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(f"{path}: row {row}", f"broken Parquet ({_first_line(error)})", "a whole Parquet file") from error


def _broken(place: str, got: str, expected: str) -> InputError:
    return InputError(
        place,
        got=got,
        expected=expected,
        remedy="Get the file again, or take it or this record away.",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
