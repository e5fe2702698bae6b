"""Safetensors files, with the errors of ordinary files."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from blockwright.errors import InputError

_NUMBER = re.compile(r"os error (\d+)")


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
