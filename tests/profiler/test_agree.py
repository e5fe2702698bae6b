"""A row that contradicts all others, of a profile whose checksums were made anew."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from blockwright.cli.main import main
from blockwright.hw_profiles.folder import read_profile, shipped_profiles, write_profile
from blockwright.hw_profiles.profile import Profile, TimeRow, WholeRow
from blockwright.pipeline.marks import marks_of, write_marked
from blockwright.profiler.agree import odd_rows

MEASURED = read_profile(Path(__file__).with_name("measured") / "runtimes-operators")
"""A 2-core Zen 3 on 2026-11-21, before there were operators of our own. What ships is measured anew now and then."""
DEMO = str(Path(__file__).parents[2] / "recipes" / "demo-parent")
Row = TypeVar("Row", TimeRow, WholeRow)
LARGE = [at for at, row in enumerate(MEASURED.times) if row.variant not in ("linear", "ffn-96")]


def _off(row: Row, factor: float) -> Row:
    return replace(row, time_s=factor * row.time_s, low_s=factor * row.low_s, high_s=factor * row.high_s)


def _with_part(at: int, factor: float) -> Profile:
    rows = [_off(row, factor) if at == number else row for number, row in enumerate(MEASURED.times)]
    return replace(MEASURED, times=tuple(rows))


@pytest.mark.parametrize("name", shipped_profiles())
def test_what_ships_agrees(name: str) -> None:
    assert odd_rows(read_profile(name)) == ()


@pytest.mark.parametrize(("factor", "share"), [(3.0, 21 / 24), (1 / 3, 17 / 24)])
def test_most_parts_made_three_times_slower_or_faster_are_named(factor: float, share: float) -> None:
    named = 0
    for at in LARGE:
        edited, row = _with_part(at, factor), MEASURED.times[at]
        found = odd_rows(edited)
        assert [odd.row for odd in found] in ([], [edited.times[at]]), "another row is accused"
        for odd in found:
            named += 1
            assert odd.expected_s == pytest.approx(row.time_s, rel=0.5)
            place = f"{row.part} {row.variant} in {row.format} at batch 1, {row.point.new_tokens} new"
            assert str(odd).startswith(place)
    assert named >= share * len(LARGE)


@pytest.mark.parametrize("noise", [0.03, 0.05])
def test_of_200_noisy_profiles_at_most_one_has_a_row_called_odd(noise: float) -> None:
    accused = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        times = tuple(_off(row, math.exp(noise * generator.standard_normal())) for row in MEASURED.times)
        wholes = tuple(_off(row, math.exp(noise * generator.standard_normal())) for row in MEASURED.wholes)
        accused += bool(odd_rows(replace(MEASURED, times=times, wholes=wholes)))
    assert accused <= 1


def test_a_whole_model_off_is_named() -> None:
    for at in range(len(MEASURED.wholes)):
        rows = [_off(each, 3.0) if at == number else each for number, each in enumerate(MEASURED.wholes)]
        [odd] = odd_rows(replace(MEASURED, wholes=tuple(rows)))
        assert odd.row == rows[at]


def test_noise_and_another_unit_of_all_parts_are_not_odd() -> None:
    for at in range(len(MEASURED.times)):
        assert odd_rows(_with_part(at, 1.15)) == ()
    assert odd_rows(replace(MEASURED, times=tuple(_off(row, 3.0) for row in MEASURED.times))) == ()


def test_who_foretells_from_an_edited_profile_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "edited"
    write_profile(_with_part(LARGE[0], 3.0), folder)
    assert main(["predict", "--parent", DEMO, "--profile", str(folder)]) == 0
    assert "edited, or disturbed" in capsys.readouterr().err
    assert any("edited, or disturbed" in mark for mark in marks_of(read_profile(folder)))


def test_who_foretells_from_marked_rows_is_told_how_many_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = tuple(f"mixer {number}: heat held the clock down while it was measured" for number in range(7))
    write_profile(replace(MEASURED, coverage=replace(MEASURED.coverage, marked=marks)), tmp_path / "hot")
    assert main(["predict", "--parent", DEMO, "--profile", str(tmp_path / "hot")]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
    assert "7 marks on rows" in line and f"blockwright profile show {tmp_path / 'hot'}" in line


def test_who_measures_is_told_of_a_disturbed_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_marked(_with_part(LARGE[0], 3.0), tmp_path / "disturbed")
    assert "marked, not to be relied on: 1 rows" in capsys.readouterr().err
