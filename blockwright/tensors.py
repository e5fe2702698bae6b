"""Safetensors files, with the errors of ordinary files."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

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
