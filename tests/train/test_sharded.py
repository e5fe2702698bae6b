"""Ranks that each hold a share learn what one process learns."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forked import fork_ranks

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("sharded_steps.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with what one process and what two ranks came to."""
    folders = {num_ranks: tmp_path_factory.mktemp(f"ranks-{num_ranks}") for num_ranks in (1, 2)}
    for num_ranks, folder in folders.items():
        fork_ranks(num_ranks, SCRIPT, folder)
    return folders


@pytest.mark.parametrize("is_tied", [False, True])
def test_two_ranks_learn_what_one_learns(found: dict[int, Path], is_tied: bool) -> None:
    alone, together = (load_file(found[num_ranks] / f"{is_tied}.safetensors") for num_ranks in (1, 2))
    assert alone.keys() == together.keys()
    assert alone["loss 2"] < alone["loss 0"]
    assert alone["norm 0"] > 1  # so that it was clipped
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{name}: {together[name]}")
