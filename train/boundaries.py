"""Hidden states between two groups of layers, on disk, so that the parent need not run from its beginning again.

A file holds what entered one layer at every step, in fp32, so that a group that starts from it learns what it would
have learnt from the embeddings. It counts only once it is whole.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blockwright.files import read_json, write_json


class Boundary:
    """What enters one layer at every step.

    Args:
        folder: where the file is.
        layer: which layer the states enter.
        shape_SBTD: steps, and the shape of a batch's states.
    """

    def __init__(self, folder: Path, layer: int, shape_SBTD: tuple[int, int, int, int]) -> None:
        self.path = folder / f"boundary-{layer:03d}.f32"
        self._count = self.path.with_suffix(".json")
        self._shape = shape_SBTD
        self._states: np.memmap | None = None

    @property
    def num_steps(self) -> int:
        """How many steps are there for certain."""
        return read_json(self._count)["steps"] if self._count.exists() and self.path.exists() else 0

    def is_whole(self) -> bool:
        """Whether all steps are there."""
        return self.num_steps == self._shape[0]

    def read(self, step: int) -> Tensor:
        """The states of one step, x_BTD."""
        return torch.from_numpy(np.array(self._open()[step]))

    def write(self, step: int, x_BTD: Tensor) -> None:
        """Keeps the states of one step."""
        self._open()[step] = x_BTD.float().cpu().numpy()

    def keep(self, num_steps: int) -> None:
        """Makes sure of the first so many steps."""
        if self._states is not None:
            self._states.flush()
        write_json(self._count, {"steps": num_steps})

    def remove(self) -> None:
        """Deletes the file."""
        self._states = None
        self._count.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _open(self) -> np.memmap:
        if self._states is None:
            mode = "r+" if self.path.exists() else "w+"
            self._states = np.memmap(self.path, dtype=np.float32, mode=mode, shape=self._shape)
        return self._states
