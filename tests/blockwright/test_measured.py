"""Measurements come back as they were written."""

from pathlib import Path

import pytest

from blockwright.cost import Cost, Load, exact
from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.measured import Measured, MeasuredCost, Quality, Sample, read_measured, write_measured
from blockwright.statistics import Estimate

ONE = Estimate(value=1.0, low=0.9, high=1.1, num_values=12)
QUALITY = Quality(kl=ONE, bits_per_byte=ONE, parent_bits_per_byte=ONE, bits_per_byte_ratio=ONE, agreement=ONE)
TIME = MeasuredCost(
    format="int4-g32",
    quantity="time_per_token",
    load="chat",
    parent=Cost(value=2e-3, low=1e-3, high=3e-3, origin="measured"),
    child=exact(1e-3),
)
MEASURED = Measured(
    schema_version=1,
    device="a-device",
    software={"python": "3.11"},
    created="2026-01-01T00:00:00Z",
    loads={"chat": Load(batch=1, prompt_tokens=8, new_tokens=8)},
    costs=(TIME,),
    realised=QUALITY,
    distilled=QUALITY,
    held_out_tokens=4096,
    samples=(Sample(prompt="a", parent="b", child="c"),),
)


def test_measurements_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_measured(MEASURED, tmp_path / "measured.json")
    assert read_measured(tmp_path / "measured.json") == MEASURED


def test_measurements_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    write_measured(MEASURED, path)
    write_json(path, read_json(path) | {"schema_version": 2})
    with pytest.raises(InputError, match="schema_version"):
        read_measured(path)


def test_a_cost_is_found_by_format_quantity_and_load() -> None:
    assert MEASURED.cost("int4-g32", "time_per_token", "chat") is TIME
    with pytest.raises(KeyError):
        MEASURED.cost("fp32", "time_per_token", "chat")
