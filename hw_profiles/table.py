"""Measurements as one table: which columns a row of each kind fills, and what may stand in them.

The table is comma-separated text that any program reads and the standard library writes. Units are in the names of the
columns; an empty cell says that the row has no such thing, never zero.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from blockwright.cost import ORIGINS
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import BACKENDS, MemoryRow, OperatorKind, OperatorRow, Point, TimeRow, WholeRow
from blockwright.hw_profiles.variants import parse_variant
from blockwright.spec import Part, parse_format
from blockwright.strict import to_data

Row = TimeRow | WholeRow | MemoryRow | OperatorRow
RowKind = Literal["part", "whole", "memory", "operator"]
_KIND_OF: dict[type, RowKind] = {TimeRow: "part", WholeRow: "whole", MemoryRow: "memory", OperatorRow: "operator"}
_NO_LAYERS = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What stands in a column."""

    read: Callable[[str], Any]
    """The value of a cell that is not empty; raises ValueError that says what was expected."""
    meaning: str


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(cell: str) -> str:
        if cell not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return cell

    return read


def _number(cell: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?(e[+-]?\d+)?", cell):
        raise ValueError("a finite number that is not negative")
    return float(cell)


def _count(cell: str) -> int:
    if not re.fullmatch(r"\d+", cell):
        raise ValueError("a whole number that is not negative")
    return int(cell)


def _format(cell: str) -> str:
    try:
        parsed = str(parse_format(cell))
    except InputError as error:
        raise ValueError(error.expected) from error
    if parsed != cell:
        raise ValueError(f"a format in full, {parsed}")
    return cell


def _layers(cell: str) -> tuple[tuple[str, str], ...]:
    pairs = [] if cell == _NO_LAYERS else [layer.split("+") for layer in cell.split(";")]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError("MIXER+FFN;MIXER+FFN")
        for part, name in zip(get_args(Part), pair, strict=True):
            parse_variant(part, name)
    return tuple((mixer, ffn) for mixer, ffn in pairs)


def _text(cell: str) -> str:
    return cell


def _boolean(cell: str) -> bool:
    return _one_of(("true", "false"))(cell) == "true"


COLUMNS: dict[str, Column] = {
    "kind": Column(read=_one_of(tuple(_KIND_OF.values())), meaning="what was measured; says which columns are filled"),
    "backend": Column(read=_one_of(BACKENDS), meaning="the runtime"),
    "format": Column(read=_format, meaning="of the weights"),
    "part": Column(read=_one_of(get_args(Part)), meaning="of a layer"),
    "variant": Column(read=_text, meaning="name of the mixer or ffn"),
    "layers": Column(read=_layers, meaning="names of each layer's mixer and ffn"),
    "is_anchor": Column(read=_boolean, meaning="fitted on, or held out"),
    "operator": Column(read=_one_of(get_args(OperatorKind)), meaning="which operator"),
    "batch": Column(read=_count, meaning="sequences"),
    "prompt_tokens": Column(read=_count, meaning="of each sequence"),
    "new_tokens": Column(read=_count, meaning="of each sequence, at once; for memory, in all"),
    "slots": Column(read=_count, meaning="tokens that the caches of a sequence have room for"),
    "rows": Column(read=_count, meaning="of activations that are multiplied by a matrix"),
    "inputs": Column(read=_count, meaning="rows of the matrix"),
    "outputs": Column(read=_count, meaning="columns of the matrix"),
    "weights": Column(read=_format, meaning="format of the matrix"),
    "weight_bytes": Column(read=_count, meaning="of the matrix as stored"),
    "context": Column(read=_count, meaning="tokens that the last new one attends to"),
    "num_heads": Column(read=_count, meaning="of queries"),
    "num_kv_heads": Column(read=_count, meaning="of keys and values"),
    "head_dim": Column(read=_count, meaning="values of a head"),
    "bytes_per_value": Column(read=_count, meaning="of an activation"),
    "kv_bytes_per_value": Column(read=_count, meaning="of a key or value in the cache"),
    "is_causal": Column(read=_boolean, meaning="earlier ones attend to less"),
    "num_values": Column(read=_count, meaning="read and written"),
    "time_s": Column(read=_number, meaning="median of the accepted samples"),
    "low_s": Column(read=_number, meaning="lower end of the median's 90 % interval"),
    "high_s": Column(read=_number, meaning="upper end of it"),
    "num_samples": Column(read=_count, meaning="accepted"),
    "num_rejected": Column(read=_count, meaning="thrown away"),
    "peak_bytes": Column(read=_count, meaning="of the process, beyond the empty runtime"),
    "exact_bytes": Column(read=_count, meaning="weights and caches in it, by counting"),
    "origin": Column(read=_one_of(ORIGINS), meaning="how it is known"),
    "software": Column(read=_text, meaning="digest of the versions that it was measured with"),
}
"""Every column, in the order of the file."""

_TIMES = ("time_s", "low_s", "high_s", "num_samples", "num_rejected")
_POINT = ("batch", "new_tokens", "slots")
OPERATOR_COLUMNS: dict[str, tuple[str, ...]] = {
    "matmul": ("rows", "inputs", "outputs", "weights", "weight_bytes", "bytes_per_value"),
    "attend": (
        *("batch", "new_tokens", "context", "num_heads", "num_kv_heads", "head_dim"),
        *("bytes_per_value", "kv_bytes_per_value", "is_causal"),
    ),
    "elementwise": ("num_values", "bytes_per_value"),
}
_FILLED: dict[str, tuple[str, ...]] = {
    "part": ("format", "part", "variant", *_POINT, *_TIMES),
    "whole": ("format", "layers", "is_anchor", *_POINT, *_TIMES),
    "memory": ("format", "batch", "prompt_tokens", "new_tokens", "peak_bytes", "exact_bytes"),
    "operator": ("operator", *_TIMES),
}
_IN_EVERY_ROW = ("kind", "backend", "origin", "software")


def kind_of_row(row: Row) -> RowKind:
    """What stands in the column ``kind``."""
    return _KIND_OF[type(row)]


def cells_of(row: Row, software: str) -> dict[str, str]:
    """A row as text, by column; what it does not have is left out."""
    flat = {"kind": kind_of_row(row), "software": software}
    for name, value in to_data(row).items():
        match name:
            case "point" | "fields":
                flat |= value
            case "kind":
                flat["operator"] = value
            case "layers":
                flat[name] = ";".join("+".join(layer) for layer in value) or _NO_LAYERS
            case _:
                flat[name] = value
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in flat.items()}


def row_of(cells: Mapping[str, str], place: str) -> Row:
    """A row from its cells.

    Args:
        cells: by column, the empty ones included.
        place: file and line, for messages.

    Raises:
        InputError: a cell is empty, or filled, that must not be, or cannot be; names the column.
    """
    values = {name: _value(name, cell, place) for name, cell in cells.items() if cell}
    filled = {*_IN_EVERY_ROW, *_FILLED[_needed(values, "kind", place)]}
    if values["kind"] == "operator":
        filled |= set(OPERATOR_COLUMNS[_needed(values, "operator", place)])
    for name in COLUMNS:
        if (name in filled) != (name in values):
            got, expected = ("nothing", "a value") if name in filled else (repr(cells[name]), "an empty cell")
            raise _wrong(place, name, got, f"{expected} in a row of kind {values['kind']}")
    if values["kind"] == "part":
        _check_variant(values, place)
    if "time_s" in values:
        for name, is_wrong in (
            ("low_s", values["low_s"] > values["time_s"]),
            ("high_s", values["high_s"] < values["time_s"]),
        ):
            if is_wrong:
                raise _wrong(place, name, cells[name], f"low_s <= time_s <= high_s, where time_s is {cells['time_s']}")
    return _built(values, place)


def _built(values: dict[str, Any], place: str) -> Row:
    kind, given = values["kind"], {name: value for name, value in values.items() if name not in ("kind", "software")}
    if kind in ("part", "whole"):
        given["point"] = Point(**{name: given.pop(name) for name in _POINT})
    if kind == "operator":
        operator = given.pop("operator")
        given |= {"kind": operator, "fields": {name: given.pop(name) for name in OPERATOR_COLUMNS[operator]}}
    try:
        return {name: cls for cls, name in _KIND_OF.items()}[kind](**given)
    except ValueError as error:
        name = "peak_bytes" if kind == "memory" else "time_s"
        raise _wrong(place, name, values[name], str(error)) from error


def _value(name: str, cell: str, place: str) -> Any:
    try:
        return COLUMNS[name].read(cell)
    except ValueError as error:
        raise _wrong(place, name, repr(cell), str(error)) from error


def _needed(values: dict[str, Any], name: str, place: str) -> str:
    if name not in values:
        raise _wrong(place, name, "nothing", "a value")
    return values[name]


def _check_variant(values: dict[str, Any], place: str) -> None:
    try:
        parse_variant(values["part"], values["variant"])
    except ValueError as error:
        raise _wrong(place, "variant", repr(values["variant"]), str(error)) from error


def _wrong(place: str, column: str, got: object, expected: str) -> InputError:
    return InputError(
        f"{place}, column {column}",
        got=got,
        expected=expected,
        remedy="The file was changed or damaged: take an unharmed copy, or measure again with `blockwright profile`.",
    )
