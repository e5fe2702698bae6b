"""The pages' example of `predict` runs, prints what stands there, and asks for no more than the parent can read."""

import json
import re
import shlex

import pytest

from blockwright.cli.flags import read_loads
from blockwright.cli.main import main
from pages import ROOT, all_text

FOUND = re.findall(r"^    blockwright (predict --parent .*)\n\n((?:      .*\n|     ─+\n)+)", all_text(), re.M)

every_example = pytest.mark.parametrize(("command", "table"), FOUND)


def test_there_is_an_example() -> None:
    assert FOUND


@every_example
def test_the_example_of_predict_is_what_it_prints(
    command: str, table: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [line.replace("(and four more)", "").split() for line in table.splitlines()[2:]]
    assert len(shown) >= 4 and [line for line in shown if line not in printed] == []


@every_example
def test_its_load_fits_into_the_parent(command: str, table: str) -> None:
    words = shlex.split(command)
    (load,) = read_loads([words[words.index("--load") + 1]]).values()
    config = json.loads((ROOT / "recipes" / "demo-parent" / "config.json").read_text())
    assert load.total_tokens <= config["max_position_embeddings"]
