"""In whatever way is distilled, two ranks come to what one process comes to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forked import fork_ranks

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("distilled_by_ranks.py")
BOUNDS = {"muon": 1e-3, "recomputed": 1e-4, "bf16": 3e-2, "cached": 1e-4, "early stop": 1e-3}
"""How far losses may be apart: sums are in another order, and bf16 rounds after them."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with what one process and what two ranks came to."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    fork_ranks(1, SCRIPT, folders[0])
    fork_ranks(2, SCRIPT, folders[1])
    return folders


@pytest.mark.parametrize("way", BOUNDS)
def test_two_ranks_distil_as_one_does(way: str, found: tuple[Path, Path]) -> None:
    one, two = (json.loads((folder / f"{way}.json").read_text()) for folder in found)
    assert len(one) == len(two) and (len(one) == 6 or way == "early stop")
    for mine, theirs in zip(one, two, strict=True):
        for key in ("loss", "gradient_norm", *(["held_out_kl"] if way == "early stop" else [])):
            assert theirs[key] == pytest.approx(mine[key], rel=BOUNDS[way]), f"{key} of step {mine['step']}"
    weights, expected = (load_file(folder / f"{way}.safetensors") for folder in (found[1], found[0]))
    for name, tensor in expected.items():
        bound = 10 * BOUNDS[way]
        torch.testing.assert_close(weights[name], tensor, rtol=bound, atol=bound, msg=name)


def test_two_ranks_stop_early_together(found: tuple[Path, Path]) -> None:
    history = json.loads((found[1] / "early stop.json").read_text())
    values = [history[0]["initial_held_out_kl"], *(step["held_out_kl"] for step in history)]
    assert len(history) == values.index(min(values)) + 2 < 6


def test_two_ranks_refuse_what_is_no_number_together_and_keep_the_state_before(found: tuple[Path, Path]) -> None:
    for folder in found:
        told = json.loads((folder / "no number.json").read_text())
        assert "at batch 2 of 6" in told and "last good state is kept" in told
        assert (folder / "no number.state").exists()
