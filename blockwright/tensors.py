"""Safetensors files, with the errors of ordinary files."""

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from blockwright.errors import InputError

_NUMBER = re.compile(r"os error (\d+)")
_FORMATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
"""Names of safetensors' own."""


def stream_tensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file tensor by tensor, so that no more than one need be there at a time.

    Args:
        path: the file.
        shapes: what will come, by name: where each stands is known beforehand.
        tensors: in the same order, on any device.
        metadata: strings to keep in the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _FORMATS[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        expected = iter(shapes.values())
        for tensor in tensors:  # no zip: it would keep the last one
            assert (tensor.dtype, tuple(tensor.shape)) == next(expected)
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            file.write(values)  # pyright: ignore[reportArgumentType] (an array is a buffer)
            del values
            del tensor  # before the next one is there
        assert next(expected, None) is None


@contextlib.contextmanager
def writing_tensors(path: Path) -> Iterator[None]:
    """Turns what the safetensors library raises when a file cannot be written into an `OSError` that says why.

    Args:
        path: what is written, for the message.

    Raises:
        OSError: the disk is full, the folder read-only, or the like.
    """
    try:
        yield
    except SafetensorError as error:
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


@contextlib.contextmanager
def opened_tensors(path: Path, remedy: str) -> Iterator[Any]:
    """Opens a file that Blockwright wrote, to read some of its tensors.

    Args:
        path: the file.
        remedy: what to do where it is broken.

    Raises:
        InputError: it is missing or broken, or has not what is read from it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(str(path), got=str(error), expected="a whole safetensors file", remedy=remedy) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that Blockwright wrote.

    Raises:
        InputError: it is missing or broken.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            str(path),
            got=str(error),
            expected="a whole safetensors file",
            remedy="Delete the folder that it is in, and run the stage that writes it again.",
        ) from error
