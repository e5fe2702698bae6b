"""The JSON Schema (2020-12) of ``profile.json``, from the dataclasses that it is read into.

python -m blockwright.hw_profiles.schema writes `profile.schema.json` anew.
"""

import json
import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from blockwright.hw_profiles.profile import Profile
from blockwright.strict import kind_of

SCHEMA = Path(__file__).with_name("profile.schema.json")
_IN_THE_TABLE = ("times", "wholes", "memory", "operators")
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def profile_schema() -> dict[str, Any]:
    """The schema as plain data."""
    definitions: dict[str, Any] = {}
    head = _object(Profile, definitions, leave_out=_IN_THE_TABLE)
    head["properties"]["num_rows"] = {"type": "object", "additionalProperties": {"type": "integer"}}
    head["required"].append("num_rows")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Blockwright hardware profile: profile.json",
        **head,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(cls: type, definitions: dict[str, Any], leave_out: tuple[str, ...] = (), kind: str = "") -> dict[str, Any]:
    hints = get_type_hints(cls)
    kept = [field for field in fields(cls) if field.name not in leave_out]  # type: ignore[arg-type]
    properties = {field.name: _schema(hints[field.name], definitions) for field in kept}
    required = [f.name for f in kept if f.default is MISSING and f.default_factory is MISSING]
    if kind:
        properties, required = {"kind": {"const": kind}} | properties, ["kind", *required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(declared: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(declared), get_args(declared)
    if is_dataclass(declared):
        return _reference(declared, definitions)  # type: ignore[arg-type]
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        classes = [each for each in arguments if is_dataclass(each)]
        return {
            "anyOf": [
                _reference(each, definitions, is_one_of_many=True)
                if len(classes) > 1 and each in classes
                else _schema(each, definitions)
                for each in arguments
            ]
        }
    if origin is tuple:
        if arguments[-1] is ...:
            return {"type": "array", "items": _schema(arguments[0], definitions)}
        items = [_schema(each, definitions) for each in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    return {"type": _PLAIN[declared]}


def _reference(cls: type, definitions: dict[str, Any], is_one_of_many: bool = False) -> dict[str, Any]:
    """A class by its name; as one of many it carries its kind, as `strict` writes it."""
    name = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" + (".of_kind" if is_one_of_many else "")
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = _object(cls, definitions, kind=kind_of(cls) if is_one_of_many else "")
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(profile_schema(), indent=1) + "\n")
