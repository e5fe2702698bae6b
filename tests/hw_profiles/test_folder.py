"""Profiles as folders: what was written comes back, and no broken file is taken for a good one."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.folder import read_profile, shipped_profiles, write_profile
from blockwright.hw_profiles.profile import OperatorRow, Profile
from blockwright.hw_profiles.provenance import AccuracyRow
from blockwright.hw_profiles.table import COLUMNS

_TIMES: dict[str, Any] = {"time_s": 2e-5, "low_s": 1e-5, "high_s": 3e-5, "num_samples": 30, "num_rejected": 1}
_ROW: dict[str, Any] = {"backend": "onnxruntime", "origin": "measured", **_TIMES}
OPERATORS = (
    OperatorRow(
        kind="matmul",
        fields={
            "rows": 1,
            "inputs": 64,
            "outputs": 32,
            "weights": "int4-g32",
            "weight_bytes": 1280,
            "bytes_per_value": 4,
        },
        **_ROW,
    ),
    OperatorRow(
        kind="attend",
        fields={
            "batch": 1,
            "new_tokens": 2,
            "context": 8,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "bytes_per_value": 4,
            "kv_bytes_per_value": 4,
            "is_causal": False,
        },
        **_ROW,
    ),
    OperatorRow(kind="elementwise", fields={"num_values": 640, "bytes_per_value": 4}, **_ROW),
)
ACCURACY = AccuracyRow(
    quantity="memory",
    format="fp32",
    phase="both",
    num_held_out=2,
    mean_error=0.1,
    median_error=0.1,
    p90_error=0.1,
    worst_error=0.1,
    bias=0.0,
    kendall_tau=None,
    interval_coverage=1.0,
)
PART, WHOLE, MEMORY, MATMUL, ATTEND = 0, 18, 30, 34, 35
"""Where rows of each kind stand in the table."""


@pytest.fixture(scope="module")
def profile() -> Profile:
    """A profile that has everything."""
    shipped = read_profile(shipped_profiles()[0])
    power = Figure(value=60.0, low=55.0, high=70.0, origin="measured", source="a test")
    ceilings = replace(shipped.ceilings, busy_w=power)
    return replace(
        shipped,
        ceilings=ceilings,
        times=shipped.times[: WHOLE - PART],
        wholes=shipped.wholes[: MEMORY - WHOLE],
        memory=shipped.memory[: MATMUL - MEMORY],
        operators=OPERATORS,
        accuracy=(ACCURACY,),
    )


@pytest.fixture
def good(profile: Profile, tmp_path: Path) -> Path:
    write_profile(profile, tmp_path / "good")
    return tmp_path / "good"


def _sum_again(folder: Path) -> Path:
    """As someone does who edits a file and wants it to be read all the same."""
    files = [folder / "profile.json", folder / "measurements.csv"]
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


def _edit_rows(folder: Path, change: Callable[[list[dict[str, str]]], object]) -> Path:
    with (folder / "measurements.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    change(rows)
    with (folder / "measurements.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return _sum_again(folder)


def _edit_head(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    head = json.loads((folder / "profile.json").read_text())
    change(head)
    (folder / "profile.json").write_text(json.dumps(head))
    return _sum_again(folder)


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


@pytest.mark.parametrize(("kept", "told"), [(-10, "middle of a row"), (None, "num_rows"), (0, "middle of a row")])
def test_a_table_that_lost_its_end_is_noticed_even_with_a_new_digest(good: Path, kept: int | None, told: str) -> None:
    text = (good / "measurements.csv").read_text()
    whole_rows = "".join(text.splitlines(keepends=True)[:-3])
    (good / "measurements.csv").write_text(whole_rows if kept is None else text[:kept])
    with pytest.raises(InputError, match=told):
        read_profile(_sum_again(good))


def test_bytes_that_are_no_text_are_refused(good: Path) -> None:
    (good / "measurements.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_profile(_sum_again(good))


def test_a_row_with_a_quote_that_never_ends_is_refused(good: Path) -> None:
    text = (good / "measurements.csv").read_text()
    (good / "measurements.csv").write_text(text.replace("\npart,", '\n"part,', 1))
    with pytest.raises(InputError, match="comma-separated rows"):
        read_profile(_sum_again(good))


def test_a_row_of_too_few_cells_is_named(good: Path) -> None:
    lines = (good / "measurements.csv").read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace(",", "", 1)
    (good / "measurements.csv").write_text("".join(lines))
    with pytest.raises(InputError, match=rf"row 5: got {len(COLUMNS) - 1} cells"):
        read_profile(_sum_again(good))


def test_a_column_that_is_missing_or_unknown_or_there_twice_is_named(good: Path) -> None:
    table = good / "measurements.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]

    def refused(change: Callable[[int, list[str]], list[str]], told: str) -> None:
        table.write_text("".join(",".join(change(row, cells)) + "\n" for row, cells in enumerate(lines)))
        with pytest.raises(InputError, match=told):
            read_profile(_sum_again(good))

    refused(lambda _, cells: cells[1:], "row 1, column kind: got it is missing")
    refused(lambda row, cells: [*cells, "" if row else "temperature_c"], "column temperature_c: got it is unknown")
    refused(lambda row, cells: [*cells, "" if row else "kind"], "a column twice")


@pytest.mark.parametrize(
    ("row", "column", "cell"),
    [
        (PART, "time_s", "nan"),
        (PART, "time_s", "inf"),
        (PART, "time_s", "-2e-05"),
        (PART, "time_s", "2e-05 s"),
        (PART, "time_s", ""),
        (PART, "low_s", "1.0"),
        (PART, "high_s", "1e-09"),
        (PART, "num_samples", "3.5"),
        (PART, "num_samples", "-3"),
        (PART, "backend", "mlc"),
        (PART, "format", "int3"),
        (PART, "format", "int4"),
        (PART, "part", "norm"),
        (PART, "variant", "attention-kv"),
        (PART, "variant", "ffn-384"),
        (PART, "origin", "guessed"),
        (PART, "kind", "block"),
        (PART, "kind", ""),
        (PART, "peak_bytes", "0"),
        (PART, "software", ""),
        (WHOLE, "time_s", "0.0"),
        (WHOLE, "layers", "attention-kv4"),
        (WHOLE, "layers", "attention-kv4+ffn-0"),
        (WHOLE, "is_anchor", "True"),
        (WHOLE, "is_anchor", ""),
        (WHOLE, "variant", "linear"),
        (MEMORY, "peak_bytes", "0"),
        (MEMORY, "exact_bytes", "-1"),
        (MEMORY, "time_s", "0"),
        (MATMUL, "operator", ""),
        (MATMUL, "operator", "conv"),
        (MATMUL, "weights", "int5"),
        (MATMUL, "weight_bytes", ""),
        (ATTEND, "rows", "1"),
        (ATTEND, "is_causal", "no"),
    ],
)
def test_a_cell_that_cannot_be_is_named_by_file_row_and_column(good: Path, row: int, column: str, cell: str) -> None:
    def change(rows: list[dict[str, str]]) -> None:
        rows[row][column] = cell
        if (column, cell) in (("time_s", "0.0"),):
            rows[row]["low_s"] = cell

    with pytest.raises(InputError) as caught:
        read_profile(_edit_rows(good, change))
    assert caught.value.field == f"{good}/measurements.csv: row {row + 2}, column {column}"


def test_rows_measured_with_other_versions_are_not_mixed_in(good: Path) -> None:
    with pytest.raises(InputError, match=r"row 4, column software.*must not be mixed"):
        read_profile(_edit_rows(good, lambda rows: rows[2].update(software="0123456789ab")))


@pytest.mark.parametrize("row", [PART, WHOLE, MATMUL])
def test_the_same_measurement_twice_is_refused(good: Path, row: int) -> None:
    def change(rows: list[dict[str, str]]) -> None:
        rows.append(rows[row] | ({} if row == WHOLE else {"time_s": rows[row]["low_s"]}))

    with pytest.raises(InputError, match=rf"row 39: got the same measurement as row {row + 2}"):
        read_profile(_edit_rows(good, change))


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
        read_profile(_edit_head(good, merge))


@pytest.mark.parametrize("figure", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["read_bytes_per_s", "launch_s", "busy_w"])
def test_a_ceiling_that_cannot_be_is_refused(good: Path, name: str, figure: float) -> None:
    with pytest.raises(InputError, match=rf"ceilings\.{name}.*low <= value"):
        read_profile(_edit_head(good, lambda head: head["ceilings"][name].update(value=figure)))


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
