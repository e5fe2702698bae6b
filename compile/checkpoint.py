"""A checkpoint's tensors, each read when it is asked for and kept by nobody but who asked.

They are read, not mapped: pages of a mapped file count as memory beside the copy that is made of them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from blockwright.errors import InputError

Weights = Mapping[str, np.ndarray]
"""A checkpoint's tensors by their names; matrices are (outputs, inputs)."""

_TYPES: dict[str, type] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""numpy's kinds of numbers by the names of safetensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a tensor lies."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


def read_weights(folder: Path) -> Weights:
    """All tensors of a checkpoint, in fp32.

    Raises:
        InputError: a file is missing or broken; or, later, a tensor that is looked up is missing.
    """
    places: dict[str, _Place] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):  # which checks that the file is whole
                places |= _places(file)
        except (SafetensorError, OSError) as error:
            raise _broken(file, error) from error
    if not places:
        raise InputError(
            str(folder), got="no safetensors file", expected="a checkpoint", remedy="Name a checkpoint's folder."
        )
    return _Tensors(folder, places)


def _places(file: Path) -> dict[str, _Place]:
    """What the header says: a length in eight bytes, then JSON; offsets count from its end."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {
        name: _Place(
            file=file, offset=8 + length + entry["data_offsets"][0], dtype=entry["dtype"], shape=tuple(entry["shape"])
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


class _Tensors(Weights):
    """One that is asked for and missing is the user's matter."""

    def __init__(self, folder: Path, places: dict[str, _Place]) -> None:
        self._folder, self._places = folder, places

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._places:
            raise InputError(
                f"{self._folder}: weights",
                got=f"no tensor {name}",
                expected="the weights of every block",
                remedy="Write the checkpoint again, or compile the one that belongs to this plan.",
            )
        place = self._places[name]
        try:
            return _read(place).astype(np.float32, copy=False)
        except (KeyError, OSError, ValueError) as error:
            raise _broken(place.file, error) from error

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def get(self, name: str, default: np.ndarray | None = None) -> np.ndarray | None:  # type: ignore[override]
        return self[name] if name in self else default  # noqa: SIM401

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _read(place: _Place) -> np.ndarray:
    dtype = np.dtype(_TYPES[place.dtype])
    # As plain bytes, for numpy reads no numbers from files that it has no name for.
    data = np.fromfile(place.file, np.uint8, math.prod(place.shape) * dtype.itemsize, offset=place.offset)
    return data.view(dtype).reshape(place.shape)


def _broken(file: Path, error: Exception) -> InputError:
    return InputError(
        str(file), got=str(error), expected="a whole safetensors file", remedy="Write the checkpoint again."
    )
