"""Tables of a profile that cannot be are refused by file, row and column."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.table import COLUMNS
from profile_tables import ATTEND, MATMUL, MEMORY, PART, WHOLE, sum_again


def edit_rows(folder: Path, change: Callable[[list[dict[str, str]]], object]) -> Path:
    with (folder / "measurements.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    change(rows)
    with (folder / "measurements.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return sum_again(folder)


@pytest.mark.parametrize(("kept", "told"), [(-10, "middle of a row"), (None, "num_rows"), (0, "middle of a row")])
def test_a_table_that_lost_its_end_is_noticed_even_with_a_new_digest(good: Path, kept: int | None, told: str) -> None:
    text = (good / "measurements.csv").read_text()
    whole_rows = "".join(text.splitlines(keepends=True)[:-3])
    (good / "measurements.csv").write_text(whole_rows if kept is None else text[:kept])
    with pytest.raises(InputError, match=told):
        read_profile(sum_again(good))


def test_bytes_that_are_no_text_are_refused(good: Path) -> None:
    (good / "measurements.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_profile(sum_again(good))


def test_a_row_with_a_quote_that_never_ends_is_refused(good: Path) -> None:
    text = (good / "measurements.csv").read_text()
    (good / "measurements.csv").write_text(text.replace("\npart,", '\n"part,', 1))
    with pytest.raises(InputError, match="comma-separated rows"):
        read_profile(sum_again(good))


def test_a_row_of_too_few_cells_is_named(good: Path) -> None:
    lines = (good / "measurements.csv").read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace(",", "", 1)
    (good / "measurements.csv").write_text("".join(lines))
    with pytest.raises(InputError, match=rf"row 5: got {len(COLUMNS) - 1} cells"):
        read_profile(sum_again(good))


def test_a_column_that_is_missing_or_unknown_or_there_twice_is_named(good: Path) -> None:
    table = good / "measurements.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]

    def refused(change: Callable[[int, list[str]], list[str]], told: str) -> None:
        table.write_text("".join(",".join(change(row, cells)) + "\n" for row, cells in enumerate(lines)))
        with pytest.raises(InputError, match=told):
            read_profile(sum_again(good))

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
        read_profile(edit_rows(good, change))
    assert caught.value.field == f"{good}/measurements.csv: row {row + 2}, column {column}"


def test_rows_measured_with_other_versions_are_not_mixed_in(good: Path) -> None:
    with pytest.raises(InputError, match=r"row 4, column software.*must not be mixed"):
        read_profile(edit_rows(good, lambda rows: rows[2].update(software="0123456789ab")))


@pytest.mark.parametrize("row", [PART, WHOLE, MATMUL])
def test_the_same_measurement_twice_is_refused(good: Path, row: int) -> None:
    def change(rows: list[dict[str, str]]) -> None:
        rows.append(rows[row] | ({} if row == WHOLE else {"time_s": rows[row]["low_s"]}))

    with pytest.raises(InputError, match=rf"row 39: got the same measurement as row {row + 2}"):
        read_profile(edit_rows(good, change))
