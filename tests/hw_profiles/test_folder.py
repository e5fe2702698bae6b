"""Profiles as folders: what was written comes back, and no broken file is taken for a good one."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile, shipped_profiles, write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.hw_profiles.table import COLUMNS
from profile_tables import ATTEND, MATMUL, MEMORY, PART, WHOLE, sum_again


def edit_head(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    head = json.loads((folder / "profile.json").read_text())
    change(head)
    (folder / "profile.json").write_text(json.dumps(head))
    return sum_again(folder)


def test_a_profile_comes_back_as_it_was_written(profile: Profile, good: Path) -> None:
    assert read_profile(good) == profile
    assert read_profile(good / "profile.json") == profile
    assert read_profile(str(good)) == profile


def test_a_profile_is_written_over_an_older_one_and_never_over_anything_else(profile: Profile, good: Path) -> None:
    write_profile(replace(profile, name="newer"), good)
    assert read_profile(good).name == "newer"
    (good.parent / "mine").mkdir()
    (good.parent / "mine" / "thesis.txt").write_text("kept")
    for taken in (good.parent, good.parent / "mine", good / "SHA256SUMS"):
        with pytest.raises(InputError, match="--out"):
            write_profile(profile, taken)
    assert (good.parent / "mine" / "thesis.txt").read_text() == "kept"
    assert not list(good.parent.glob(".*")), "unfinished work is left"


def test_the_table_says_nothing_where_there_is_nothing(good: Path) -> None:
    with (good / "measurements.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert [rows[place]["kind"] for place in (PART, WHOLE, MEMORY, MATMUL)] == ["part", "whole", "memory", "operator"]
    assert rows[MEMORY]["time_s"] == rows[PART]["peak_bytes"] == rows[ATTEND]["num_values"] == ""
    assert rows[ATTEND]["is_causal"] == "false"


def test_an_unknown_name_lists_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_profile(tmp_path / "no-such-device")
    assert shipped_profiles() and all(name in str(error.value) for name in shipped_profiles())


@pytest.mark.parametrize("name", ["profile.json", "measurements.csv", "SHA256SUMS"])
def test_a_missing_file_is_named(good: Path, name: str) -> None:
    (good / name).unlink()
    with pytest.raises(InputError, match=rf"good/{name}"):
        read_profile(good)


@pytest.mark.parametrize("name", ["profile.json", "measurements.csv"])
@pytest.mark.parametrize("place", [0.3, 0.99])
def test_one_flipped_bit_is_noticed(good: Path, name: str, place: float) -> None:
    data = bytearray((good / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (good / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        read_profile(good)


def test_an_edited_file_is_noticed_by_its_digest(good: Path) -> None:
    text = (good / "profile.json").read_text()
    (good / "profile.json").write_text(text.replace('"num_threads": 1', '"num_threads": 2'))
    with pytest.raises(InputError, match=r"profile\.json: got a file with the SHA-256"):
        read_profile(good)


def test_a_file_without_a_digest_is_refused(good: Path) -> None:
    line = (good / "SHA256SUMS").read_text().splitlines()[0]
    (good / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(InputError, match=r"measurements\.csv.*a line of SHA256SUMS"):
        read_profile(good)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature_c": 40}, "temperature_c"),
        ({"num_threads": "1"}, "num_threads"),
        ({"times": []}, "times"),
        ({"num_rows": None}, "num_rows"),
        ({"accuracy": [{"quantity": "memory"}]}, r"accuracy\[0\]"),
        ({"device": {"serial": "1234"}}, "serial"),
        ({"coverage": {"status": "done"}}, "status"),
        ({"method": {"clock": "sundial"}}, "clock"),
    ],
)
def test_what_no_head_holds_is_refused_by_name(good: Path, change: dict, named: str) -> None:
    def merge(head: dict[str, Any]) -> None:
        for name, value in change.items():
            head[name] = head[name] | value if isinstance(value, dict) else value

    with pytest.raises(InputError, match=named):
        read_profile(edit_head(good, merge))


@pytest.mark.parametrize("figure", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["read_bytes_per_s", "launch_s", "busy_w"])
def test_a_ceiling_that_cannot_be_is_refused(good: Path, name: str, figure: float) -> None:
    with pytest.raises(InputError, match=rf"ceilings\.{name}.*low <= value"):
        read_profile(edit_head(good, lambda head: head["ceilings"][name].update(value=figure)))


def test_a_file_of_version_1_says_how_to_come_by_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"schema_version": 1, "times": []}))
    with pytest.raises(InputError, match=r"schema_version: got 1.*measure again with `blockwright profile"):
        read_profile(tmp_path / "old.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="a profile's mapping"):
        read_profile(tmp_path / "list.json")


def test_a_copy_of_a_profile_is_a_profile(good: Path, profile: Profile) -> None:
    shutil.copytree(good, good.parent / "copy")
    assert read_profile(good.parent / "copy") == profile
