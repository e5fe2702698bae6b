"""Metrics of the user's own, as files."""

from pathlib import Path

import pytest
import torch

from blockwright.errors import InputError
from blockwright.search.metrics import load_function


def test_a_function_is_loaded_by_its_file_and_name(tmp_path: Path) -> None:
    path = tmp_path / "my metric.py"
    path.write_text("def first(logits_BTV, ids_BT):\n    return logits_BTV[:, 0, 0] + ids_BT[:, 0]\n")
    name, function = load_function(f"{path}:first")
    assert name == "first"
    assert function(torch.ones(2, 3, 4), torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("text", ["perplexity", "", "task", "nowhere.py:f", ":f", "kl:f"])
def test_what_is_no_metric_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InputError, match="expected kl, lm_loss, or a function of yours"):
        load_function(text)


def test_a_function_that_its_file_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    path = tmp_path / "metric.py"
    path.write_text("def _own(): ...\ndef right(): ...\nwrong = 1\n")
    for name in ("wrong", "missing", ""):
        with pytest.raises(InputError, match="expected one of right"):
            load_function(f"{path}:{name}")
