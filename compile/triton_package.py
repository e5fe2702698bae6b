"""The one place that imports Triton, which comes with the extra [triton]; needs no GPU to compile."""

import re
from typing import Any

from blockwright.errors import InputError

OLDEST = (3, 6)
"""The oldest that this was tried with; of 3.4 the compiler's interface differs."""


def check_version(version: str, oldest: tuple[int, int] = OLDEST, what: str = "") -> None:
    """Refuses what is too old.

    Args:
        version: as Triton states it.
        oldest: that will do.
        what: why a later one than otherwise is needed.

    Raises:
        InputError: it is older.
    """
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < oldest:
        raise InputError(
            "triton",
            got=f"Triton {version}{what}",
            expected=f"Triton {oldest[0]}.{oldest[1]} or later",
            remedy="Install a later one: pip install --upgrade triton.",
        )


try:
    import triton as _triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise InputError(
        "triton",
        got=f"no Triton that loads ({error})",
        expected=f"Triton {OLDEST[0]}.{OLDEST[1]} or later",
        remedy="Install it: pip install 'blockwright[triton]'. About 1 GB; no GPU is needed.",
    ) from error

triton: Any = _triton
"""Of any type, for its checkers know only some of its modules."""

check_version(triton.__version__)

__all__ = ["OLDEST", "check_version", "tl", "triton"]
