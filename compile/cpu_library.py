"""The operators of our own for processors: C beside this file, compiled on the machine that runs them.

Where there is no C compiler, or another kind of processor, engines run on ONNX Runtime's operators: the same numbers,
slower.
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from blockwright.files import new_file

SOURCE = Path(__file__).with_name("cpu_int4.c")
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-mavx2", "-mfma", "-shared", "-fPIC", "-fvisibility=hidden")
_NEEDED = {"avx2", "fma"}
_BETTER_ELSEWHERE = {"avx_vnni", "avx512_vnni"}
"""With these ONNX Runtime has kernels of another kind, which ours were not measured against."""


@functools.cache
def own_library() -> Path | None:
    """The compiled operators, or None where they do not run or cannot be compiled."""
    if platform.machine() != "x86_64" or not _suits(_processor_flags()):
        return None
    return compiled(SOURCE, _cache_folder())


def compiled(source: Path, folder: Path) -> Path | None:
    """The shared library of a C file, compiled once per version of it; None if no compiler makes one."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    digest = hashlib.sha256(" ".join(_FLAGS).encode() + source.read_bytes()).hexdigest()
    library = folder / f"{source.stem}-{digest[:16]}.so"
    if not library.exists():
        try:
            with new_file(library) as temporary:
                command = [compiler, *_FLAGS, "-o", str(temporary), str(source)]
                subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
    return library


def _suits(flags: set[str]) -> bool:
    return flags >= _NEEDED and not flags & _BETTER_ELSEWHERE


def _processor_flags() -> set[str]:
    """What Linux says the processor can do; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "blockwright"
