"""The shipped JSON Schema: it is what the code says, it accepts what is written and refuses what is not."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.folder import measured_profiles, read_profile, shipped_profiles, write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.hw_profiles.schema import SCHEMA, profile_schema

_SCHEMA: dict[str, Any] = json.loads(SCHEMA.read_text())
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def _complaints(data: Any, schema: dict[str, Any]) -> list[str]:
    """The keywords of 2020-12 that the schema uses, in a few lines."""
    if "$ref" in schema:
        return _complaints(data, _SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema:
        found = [_complaints(data, each) for each in schema["anyOf"]]
        return [] if [] in found else [f"{data!r:.40}: none of {len(found)}", *min(found, key=len)]
    if "enum" in schema or "const" in schema:
        return [] if data in schema.get("enum", [schema.get("const")]) else [f"{data!r} is not allowed"]
    if not isinstance(data, _TYPES[schema["type"]]) or (isinstance(data, bool) and schema["type"] != "boolean"):
        return [f"{data!r:.40} is no {schema['type']}"]
    if isinstance(data, list):
        each = schema.get("prefixItems") or [schema["items"]] * len(data)
        found = [] if len(each) == len(data) else [f"{len(data)} items"]
        return found + [c for item, inner in zip(data, each, strict=False) for c in _complaints(item, inner)]
    if isinstance(data, dict):
        known, others = schema.get("properties", {}), schema["additionalProperties"]
        found = [f"{name} is missing" for name in schema.get("required", []) if name not in data]
        found += [f"{name} is unknown" for name in data if name not in known and others is False]
        return found + [
            c for name, v in data.items() if others or name in known for c in _complaints(v, known.get(name, others))
        ]
    return []


def test_the_shipped_schema_is_what_the_code_says() -> None:
    assert profile_schema() == _SCHEMA, "write it anew: python -m blockwright.hw_profiles.schema"
    assert _SCHEMA["$schema"].endswith("2020-12/schema")


def test_the_schema_and_the_dataclasses_have_the_same_names() -> None:
    rows = {"times", "wholes", "memory", "operators"}
    assert set(_SCHEMA["properties"]) == {field.name for field in fields(Profile)} - rows | {"num_rows"}
    ceilings = _SCHEMA["$defs"]["ceilings.Ceilings"]
    assert set(ceilings["properties"]) == {field.name for field in fields(Ceilings)}
    assert ceilings["required"] == ["read_bytes_per_s", "flop_per_s", "launch_s"]


@pytest.mark.parametrize("name", measured_profiles())
def test_what_ships_fits_the_schema(name: str) -> None:
    assert _complaints(json.loads((SCHEMA.parent / name / "profile.json").read_text()), _SCHEMA) == []


def test_what_is_written_fits_the_schema_without_a_parent_too(tmp_path: Path) -> None:
    profile = replace(read_profile(shipped_profiles()[0]), model=None, times=(), wholes=(), memory=())
    write_profile(profile, tmp_path / "device")
    assert _complaints(json.loads((tmp_path / "device" / "profile.json").read_text()), _SCHEMA) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["schema_version"], 1),
        (["num_threads"], "1"),
        (["device", "serial"], "1234"),
        (["ceilings", "launch_s"], None),
        (["ceilings", "flop_per_s", "fp32", "value"], "fast"),
        (["model", "layers", 0, "mixer", "kind"], "mamba"),
        (["method", "clock"], "sundial"),
        (["num_rows", "part"], 1.5),
    ],
)
def test_what_does_not_fit_is_refused(place: list[Any], value: Any) -> None:
    data = json.loads((SCHEMA.parent / shipped_profiles()[0] / "profile.json").read_text())
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert _complaints(data, _SCHEMA)
