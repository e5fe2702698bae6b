"""Runs a measurement in a process of its own.

What a process did before decides where its memory lies, and that decides how fast a model runs: measured on a 2-core
Zen 3, the same 7 MB engine took 384 µs a step in a fresh process and 511 in one that had trained. An engine is served
by a fresh process, so that is where it is measured.
"""

import subprocess
import sys
from collections.abc import Sequence

from blockwright.errors import InputError


def run_module(module: str, arguments: Sequence[str], measured: str) -> str:
    """Runs ``python -m module arguments`` and gives what it writes to standard output.

    Args:
        module: with a main part.
        arguments: for it.
        measured: what fails if it fails, for the error.

    Raises:
        InputError: the process failed; its last line of output is given.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(
            measured,
            got=last_line,
            expected="an engine that runs this load",
            remedy="Compile it again, or try a smaller load.",
        )
    return done.stdout
