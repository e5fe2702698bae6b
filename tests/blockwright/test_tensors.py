"""Tensors written one by one are what the library writes at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockwright.tensors import stream_tensors

TENSORS = {
    "w": torch.arange(6.0).view(2, 3).T,
    "step": torch.tensor(7.0),
    "none": torch.zeros(0, 4),
    "half": torch.arange(5).to(torch.bfloat16),
    "ids": torch.arange(3),
}
SHAPES = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def test_a_streamed_file_reads_as_one_written_at_once(tmp_path: Path) -> None:
    stream_tensors(tmp_path / "mine", SHAPES, iter(TENSORS.values()), {"data": "[1]"})
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "theirs")
    mine, theirs = load_file(tmp_path / "mine"), load_file(tmp_path / "theirs")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=0)
    with safe_open(tmp_path / "mine", framework="pt") as file:
        assert file.metadata() == {"data": "[1]"}
        assert torch.equal(file.get_slice("w")[1:], TENSORS["w"][1:])


@pytest.mark.parametrize("names", [("w",), ("w", "ids", "none")])
def test_tensors_that_were_not_announced_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    def given() -> Iterator[Tensor]:
        for name in names:
            yield TENSORS[name]

    with pytest.raises(AssertionError):
        stream_tensors(tmp_path / "file", SHAPES, given(), {})
