"""Plain data (from JSON or YAML) to frozen dataclasses and back, refusing whatever does not fit.

A dataclass becomes a mapping of its fields; where a field's type is a union of dataclasses, its value
also carries its ``kind``, the class's name in snake case. Unknown keys, missing keys and wrong types are `InputError`s
that name the path of the value, so that a typing mistake in a recipe is found where it stands.
"""

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from blockwright.errors import InputError

T = TypeVar("T")


def kind_of(cls: type) -> str:
    """The name of a class in data: `GatedFFN` is ``gated_ffn``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()


def to_data(value: Any, declared: Any = None) -> Any:
    """Turns dataclasses, tuples and mappings into what JSON can hold.

    Args:
        value: what to write.
        declared: the type it is declared as, where that is a union.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": kind_of(type(value))} if len(_dataclasses_of(declared)) > 1 else {}
        return kind | {name: to_data(getattr(value, name), hint) for name, hint in _hints(type(value)).items()}
    if isinstance(value, tuple | list):
        item = get_args(declared)[0] if get_origin(declared) is tuple else None
        return [to_data(element, item) for element in value]
    if isinstance(value, Mapping):
        item = get_args(declared)[1] if get_origin(declared) is dict else None
        return {key: to_data(element, item) for key, element in value.items()}
    return value


def from_data(cls: type[T], data: Any, path: str = "") -> T:
    """Builds a value of a type from plain data.

    Args:
        cls: a dataclass, a union of dataclasses, a literal, a plain type, a tuple or a dict of these.
        data: what JSON or YAML held.
        path: where it stood, for messages.

    Raises:
        InputError: a key is unknown or missing, or a value is of another type.
    """
    return cast(T, _convert(cls, data, path))


def _convert(cls: Any, data: Any, path: str) -> Any:
    origin = get_origin(cls)
    if isinstance(cls, type) and is_dataclass(cls):
        return _convert_dataclass(cls, data, path)
    if origin in (Union, types.UnionType):
        return _convert_union(cls, data, path)
    if origin is Literal:
        if not any(type(data) is type(allowed) and data == allowed for allowed in get_args(cls)):
            raise _mismatch(path, data, "one of " + ", ".join(map(str, get_args(cls))))
        return data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise _mismatch(path, data, "a list")
        types_ = get_args(cls) if get_args(cls)[-1] is not ... else (get_args(cls)[0],) * len(data)
        if len(types_) != len(data):
            raise _mismatch(path, data, f"a list of {len(types_)}")
        pairs = zip(types_, data, strict=True)
        return tuple(_convert(item, element, f"{path}[{index}]") for index, (item, element) in enumerate(pairs))
    if origin is dict:
        if not isinstance(data, Mapping):
            raise _mismatch(path, data, "a mapping")
        return {str(key): _convert(get_args(cls)[1], item, _join(path, str(key))) for key, item in data.items()}
    if cls is float and type(data) is int:
        return float(data)
    if cls is Any or type(data) is cls:
        return data
    raise _mismatch(path, data, {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[cls])


def _convert_union(cls: Any, data: Any, path: str) -> Any:
    if data is None and type(None) in get_args(cls):
        return None
    members = [member for member in get_args(cls) if member is not type(None)]
    classes = {kind_of(member): member for member in _dataclasses_of(cls)}
    if not classes:
        if len(members) == 1:
            return _convert(members[0], data, path)
        for member in members:
            if type(data) is (get_origin(member) or member) or (member is float and type(data) is int):
                return _convert(member, data, path)
        raise _mismatch(path, data, " or ".join(getattr(member, "__name__", str(member)) for member in members))
    given = dict(data) if isinstance(data, Mapping) else {}
    kind = given.pop("kind", None)
    if kind is None and len(classes) == 1:
        return _convert(members[0], data, path)
    if not isinstance(kind, str) or kind not in classes:
        raise _mismatch(_join(path, "kind"), kind, "one of " + ", ".join(classes))
    return _convert_dataclass(classes[kind], given, path)


def _convert_dataclass(cls: Any, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise _mismatch(path, data, f"a mapping with the keys {', '.join(_hints(cls))}")
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            raise InputError(
                _join(path, str(key)),
                got="an unknown key",
                expected="one of " + ", ".join(hints),
                remedy="Correct the spelling or remove the key.",
            )
    for field in fields(cls):
        if field.name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(
                _join(path, field.name), got="no such key", expected="a value", remedy="Add the missing key."
            )
    converted = {key: _convert(hints[key], value, _join(path, str(key))) for key, value in data.items()}
    try:
        return cls(**converted)
    except InputError:
        raise
    except ValueError as error:
        raise _mismatch(path or kind_of(cls), data, str(error)) from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}  # type: ignore[arg-type]


def _dataclasses_of(declared: Any) -> list[type]:
    if get_origin(declared) not in (Union, types.UnionType):
        return []
    return [member for member in get_args(declared) if isinstance(member, type) and is_dataclass(member)]


def _mismatch(path: str, data: Any, expected: str) -> InputError:
    got = "nothing" if data is None else repr(data)
    short = got if len(got) <= 200 else f"{got[:200]}…"
    return InputError(path or "the file", got=short, expected=expected, remedy="Correct the value.")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
