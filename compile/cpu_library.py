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

SOURCES = tuple(
    Path(__file__).with_name(f"cpu_{name}") for name in ("operators.c", "int4.c", "attention.c", "operators.h")
)
VERSION = 1
"""To be raised when the operators become faster or slower: profiles measured with another one are refused then."""
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
    return compiled(SOURCES, _cache_folder())


def operators_in_use() -> str:
    """Whose operators multiply and attend in an engine here, as profiles and measurements record it."""
    return "onnxruntime" if own_library() is None else f"blockwright {VERSION}"


def compiled(sources: tuple[Path, ...], folder: Path) -> Path | None:
    """The shared library of some C files and their headers, compiled once per version; None if none can be made."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    digest = hashlib.sha256(" ".join(_FLAGS).encode() + b"".join(source.read_bytes() for source in sources)).hexdigest()
    library = folder / f"{sources[0].stem}-{digest[:16]}.so"
    if not library.exists():
        try:
            with new_file(library) as temporary:
                parts = [str(source) for source in sources if source.suffix == ".c"]
                command = [compiler, *_FLAGS, "-o", str(temporary), *parts]
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
