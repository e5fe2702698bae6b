"""What a space comes to is shown before anything trains."""

import json
import re
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.model.parent import open_parent
from blockwright.search.space import SpaceSettings
from blockwright.search.space_file import read_space
from blockwright.search.space_size import describe_space

KEYS = "kv_heads: [1]\nformats: [fp32]\noverrides: [{layers: 1, has_no_op: false}]\n"


def test_layers_that_are_offered_the_same_stand_in_one_row(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(KEYS)
    assert main(["space", str(small_parent)]) == 0
    plain = capsys.readouterr().out
    assert re.findall(r"^ *([\d-]+) +(mixer|ffn)", plain, re.MULTILINE) == [("0-1", "mixer"), ("0-1", "ffn")]
    assert main(["space", str(small_parent), "--space", str(tmp_path / "space.yaml")]) == 0
    overridden = capsys.readouterr().out
    assert re.findall(r"^ *([\d-]+) +(mixer|ffn)", overridden, re.MULTILINE) == [
        ("0", "mixer"),
        ("1", "mixer"),
        ("0", "ffn"),
        ("1", "ffn"),
    ]
    size = describe_space(open_parent(str(small_parent)).spec, read_space(tmp_path / "space.yaml"))
    assert re.findall(r"attention-kv\d", overridden) == ["attention-kv2", "attention-kv1"] * 2
    assert f"{size.num_candidates} candidates, {size.num_trained} of them to train" in overridden


def test_the_same_stands_in_plain_data(small_parent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", str(small_parent), "--tokens", "1k", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    size = describe_space(open_parent(str(small_parent)).spec, SpaceSettings())
    assert data["training_flops"] == 1000 * size.training_flops_per_token
    assert data["num_trained"] == size.num_trained
    assert [row["variants"] for row in data["rows"]] == [list(row.variants) for row in size.rows]


def test_a_file_that_does_not_suit_the_parent_is_refused(
    small_parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text("ffn_widths: [65]")
    assert main(["space", str(small_parent), "--space", str(tmp_path / "space.yaml")]) == 2
    assert "space.yaml: ffn_widths[0]" in capsys.readouterr().err
