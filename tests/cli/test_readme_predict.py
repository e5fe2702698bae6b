"""The README's example of `predict` runs, prints what stands there, and asks for no more than the parent can read."""

import json
import re
import shlex
from pathlib import Path

import pytest

from blockwright.cli.flags import read_loads
from blockwright.cli.main import main

ROOT = Path(__file__).parents[2]
EXAMPLE = re.search(
    r"^    blockwright (predict --parent .*)\n\n((?:      .*\n|     ─+\n)+)", (ROOT / "README.md").read_text(), re.M
)


def test_the_example_of_predict_is_what_it_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EXAMPLE is not None
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(EXAMPLE[1])) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [line.replace("(and four more)", "").split() for line in EXAMPLE[2].splitlines()[2:]]
    assert len(shown) >= 4 and [line for line in shown if line not in printed] == []


def test_its_load_fits_into_the_parent() -> None:
    assert EXAMPLE is not None
    words = shlex.split(EXAMPLE[1])
    (load,) = read_loads([words[words.index("--load") + 1]]).values()
    config = json.loads((ROOT / "recipes" / "demo-parent" / "config.json").read_text())
    assert load.total_tokens <= config["max_position_embeddings"]
