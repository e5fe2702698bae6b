"""`library` for the pairs of a space, and its count before anything is trained."""

import json
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.library import read_library

pytestmark = pytest.mark.slow


@pytest.fixture
def words(small_parent: Path, small_text: Path, tmp_path: Path) -> list[str]:
    training = ["--window", "32", "--tokens", "512", "--batch", "4", "--text", str(small_text)]
    return ["library", str(small_parent), *training, "--out", str(tmp_path / "coupled")]


def test_a_dry_run_counts_as_json_and_writes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--coupled", "--pairs", "all", "--dry-run", "--json"]) == 0
    count = json.loads(capsys.readouterr().out)
    assert count["tokens"] == 512 and count["steps"] == 4
    assert sum(group["trained"] for group in count["groups"]) > 2
    assert 0 < count["memory_bytes"] <= count["memory_given_bytes"] and count["time_s"] > 0
    assert not list(tmp_path.iterdir())


def test_pairs_of_a_plan_are_trained_and_scoring_says_that_it_leaves_them_out(
    words: list[str], small_run: Path, tmp_path: Path, small_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = tmp_path / "single"
    assert main([*words[:-1], str(single)]) == 0
    scoring = ["--text", str(small_text), "--window", "32", "--tokens", "256"]
    scores, plan = tmp_path / "scores.parquet", tmp_path / "plan.json"
    assert main(["score", str(single), *scoring, "--out", str(scores)]) == 0
    budget = ["--load", "chat=1x16+16", "--budget", "parameters@chat <= 80%"]
    profile = str(small_run / "run" / "profile")
    assert main(["search", "--scores", str(scores), "--profile", profile, *budget, "--out", str(plan)]) == 0
    assert main([*words, "--coupled", "--pairs", str(plan), "--start", str(single)]) == 0
    library = read_library(tmp_path / "coupled")
    assert library.blocks and library.entries == read_library(single).entries
    capsys.readouterr()
    assert main(["score", str(tmp_path / "coupled"), *scoring, "--out", str(tmp_path / "again.parquet")]) == 0
    assert f"{len(library.blocks)} pairs trained together are left out" in capsys.readouterr().err
