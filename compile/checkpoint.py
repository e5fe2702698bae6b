"""A checkpoint's tensors, each read when it is asked for and kept by nobody but who asked."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from blockwright.errors import InputError

Weights = Mapping[str, np.ndarray]
"""A checkpoint's tensors by their names; matrices are (outputs, inputs)."""


def read_weights(folder: Path) -> Weights:
    """All tensors of a checkpoint, in fp32.

    Raises:
        InputError: a file is missing or broken; or, later, a tensor that is looked up is missing.
    """
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                places |= dict.fromkeys(tensors.keys(), file)
        except (SafetensorError, OSError) as error:
            raise _broken(file, error) from error
    if not places:
        raise InputError(
            str(folder), got="no safetensors file", expected="a checkpoint", remedy="Name a checkpoint's folder."
        )
    return _Tensors(folder, places)


class _Tensors(Weights):
    """One that is asked for and missing is the user's matter."""

    def __init__(self, folder: Path, places: dict[str, Path]) -> None:
        self._folder, self._places = folder, places

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._places:
            raise InputError(
                f"{self._folder}: weights",
                got=f"no tensor {name}",
                expected="the weights of every block",
                remedy="Write the checkpoint again, or compile the one that belongs to this plan.",
            )
        file = self._places[name]
        try:
            # Opened for each tensor: an open file stays mapped, and what was read of it in memory.
            with safe_open(file, framework="numpy") as tensors:
                return tensors.get_tensor(name).astype(np.float32, copy=False)
        except (SafetensorError, OSError) as error:
            raise _broken(file, error) from error

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def get(self, name: str, default: np.ndarray | None = None) -> np.ndarray | None:  # type: ignore[override]
        return self[name] if name in self else default  # noqa: SIM401

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _broken(file: Path, error: Exception) -> InputError:
    return InputError(
        str(file), got=str(error), expected="a whole safetensors file", remedy="Write the checkpoint again."
    )
