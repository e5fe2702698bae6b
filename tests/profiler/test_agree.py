"""A row that contradicts all others, of a profile whose checksums were made anew."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import measured_profiles, read_profile, shipped_profiles, write_profile
from blockwright.hw_profiles.profile import Profile, TimeRow, WholeRow
from blockwright.profiler.agree import check_rows_agree

SHIPPED = read_profile(measured_profiles()[0])
DEMO = str(Path(__file__).parents[2] / "recipes" / "demo-parent")
Row = TypeVar("Row", TimeRow, WholeRow)
LARGE = [at for at, row in enumerate(SHIPPED.times) if row.variant not in ("linear", "ffn-96")]


def _off(row: Row, factor: float) -> Row:
    return replace(row, time_s=factor * row.time_s, low_s=factor * row.low_s, high_s=factor * row.high_s)


def _with_part(at: int, factor: float) -> Profile:
    rows = [_off(row, factor) if at == number else row for number, row in enumerate(SHIPPED.times)]
    return replace(SHIPPED, times=tuple(rows))


@pytest.mark.parametrize("name", shipped_profiles())
def test_what_ships_agrees(name: str) -> None:
    check_rows_agree(read_profile(name))


@pytest.mark.parametrize("at", LARGE)
def test_a_part_made_three_times_slower_is_named(at: int) -> None:
    row = SHIPPED.times[at]
    with pytest.raises(InputError) as caught:
        check_rows_agree(_with_part(at, 3.0))
    where = f"{row.part} {row.variant} in {row.format} at batch 1, {row.point.new_tokens} new"
    assert where in caught.value.field and f"{3 * row.time_s:.3g} s" in str(caught.value.got)


def test_most_made_three_times_faster_are_named() -> None:
    named = 0
    for at in LARGE:
        try:
            check_rows_agree(_with_part(at, 1 / 3))
        except InputError as error:
            named += f"{SHIPPED.times[at].variant} in" in error.field
    assert named >= 0.7 * len(LARGE)


def test_a_whole_model_off_is_named() -> None:
    for at, row in enumerate(SHIPPED.wholes):
        rows = [_off(each, 3.0) if at == number else each for number, each in enumerate(SHIPPED.wholes)]
        with pytest.raises(InputError, match="a whole model") as caught:
            check_rows_agree(replace(SHIPPED, wholes=tuple(rows)))
        assert f"{3 * row.time_s:.3g} s" in str(caught.value.got)


def test_noise_and_another_unit_of_all_parts_are_no_edit() -> None:
    for at in range(len(SHIPPED.times)):
        check_rows_agree(_with_part(at, 1.15))
    check_rows_agree(replace(SHIPPED, times=tuple(_off(row, 3.0) for row in SHIPPED.times)))


def test_an_edited_profile_is_not_foretold_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(_with_part(LARGE[0], 3.0), tmp_path / "edited")
    assert main(["predict", "--parent", DEMO, "--profile", str(tmp_path / "edited")]) == BAD_INPUT
    assert "other rows at this point agree" in " ".join(capsys.readouterr().err.split())


def test_it_takes_no_time_to_speak_of() -> None:
    started = time.process_time()
    check_rows_agree(SHIPPED)
    assert time.process_time() - started < 0.2
