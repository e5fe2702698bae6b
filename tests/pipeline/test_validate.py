"""Trying a profile: children it was not fitted on, foretold, measured, and the table kept in it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline import validate
from blockwright.pipeline.validate import ValidateOrder, draw_children
from blockwright.profiler.measure import layer_names

LOAD = Load(batch=1, prompt_tokens=16, new_tokens=16)


def _order(num_children: int, seed: int = 0) -> ValidateOrder:
    return ValidateOrder(loads={"chat": LOAD}, formats=("fp32",), num_children=num_children, seed=seed, seconds=0.01)


def test_children_are_different_from_each_other_and_from_what_was_fitted_on(
    make_profile: Callable[..., Profile],
) -> None:
    profile = make_profile([LOAD])
    children = draw_children(profile, "fp32", _order(40))
    names = {layer_names(child) for child in children}
    assert len(names) == 40
    assert not names & {row.layers for row in profile.wholes}
    assert children == draw_children(profile, "fp32", _order(40))
    assert children != draw_children(profile, "fp32", _order(40, seed=1))


def test_more_children_than_there_are_mixes_are_refused(make_profile: Callable[..., Profile]) -> None:
    profile = make_profile([LOAD])
    assert profile.model is not None
    shallow = replace(profile, model=replace(profile.model, layers=profile.model.layers[:1]))
    with pytest.raises(InputError, match="--children"):
        draw_children(shallow, "fp32", _order(4 * 4 + 1))


def test_a_format_without_times_is_refused(make_profile: Callable[..., Profile]) -> None:
    with pytest.raises(InputError, match="fp32"):
        draw_children(make_profile([LOAD]), "int4-g32", _order(1))


@pytest.mark.slow
def test_the_table_is_written_into_the_profile_and_is_not_made_twice(
    tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "profile"
    shutil.copytree(small_run / "run" / "profile", profile)
    command = ["profile", "validate", str(profile), "--children", "3", "--load", "chat=1x16+16", "--seconds", "0.02"]
    assert main(command) == 0
    assert "tau" in capsys.readouterr().out
    rows = read_profile(profile).accuracy
    assert {(row.quantity, row.phase) for row in rows} == {
        ("time_per_token", "decode"),
        ("time_to_first_token", "prefill"),
        ("memory", "both"),
    }
    assert all(row.num_held_out == 3 for row in rows)
    monkeypatch.setattr(validate, "measure_engines", None)
    assert main(command) == 0
    assert read_profile(profile).accuracy == rows
