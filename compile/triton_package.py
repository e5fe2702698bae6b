"""The one place that imports Triton, which comes with the extra [triton]; needs no GPU to compile."""

import re
from typing import Any

from blockwright.errors import InputError

OLDEST = (3, 4)
"""The first with `triton.knobs`."""


def check_version(version: str) -> None:
    """Refuses what is too old.

    Raises:
        InputError: it is.
    """
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise InputError(
            "triton",
            got=f"Triton {version}",
            expected="Triton 3.4 or later",
            remedy="Install a later one: pip install 'blockwright[triton]'.",
        )


try:
    import triton as _triton
    import triton.language as tl
except ImportError as error:
    raise InputError(
        "triton",
        got=f"no Triton that loads ({error})",
        expected="Triton 3.4 or later",
        remedy="Install it: pip install 'blockwright[triton]'. About 1 GB; no GPU is needed.",
    ) from error

triton: Any = _triton
"""Of any type, for its checkers know only some of its modules."""

check_version(triton.__version__)

__all__ = ["OLDEST", "check_version", "tl", "triton"]
