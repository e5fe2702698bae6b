"""The one place that asks the system: files, commands, and which system it is.

Everything that is read goes through a `Machine`, so that what other machines say can be given as text in a test.
"""

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_COMMAND_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What can be asked of a machine."""

    system: str
    """``Linux`` or ``Darwin``."""
    architecture: str
    """``x86_64``, ``aarch64``, ``arm64``."""
    num_usable_cores: int | None
    """Cores that this process may use, where the system says so."""
    read: Callable[[str], str | None]
    """The text of a file; None where there is none or it may not be read."""
    run: Callable[[str], str | None]
    """What a command, with its words between spaces, writes; None where there is none or it fails."""


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        num_usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        read=_read,
        run=_run,
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _run(command: str) -> str | None:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
