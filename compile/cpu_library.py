"""The operators of our own for processors: C beside this file, compiled on the machine that runs them.

Where there is no C compiler, another kind of processor, no folder that is ours alone, or an ONNX Runtime that they do
not work in, engines run on ONNX Runtime's operators: the same numbers, slower.
"""

import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blockwright.errors import InputError
from blockwright.files import new_file

SOURCES = tuple(
    Path(__file__).with_name(f"cpu_{name}") for name in ("operators.c", "int4.c", "attention.c", "operators.h")
)
VERSION = 1
"""To be raised when the operators become faster or slower: profiles measured with another one are refused then."""
SWITCH = "BLOCKWRIGHT_CPU_OPERATORS"
"""Set to `onnxruntime`, it leaves everything to ONNX Runtime."""
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-mavx2", "-mfma", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,nodelete")
"""The last one: once loaded, never unloaded, for sessions may still hold pointers into it."""
_NEEDED = {"avx2", "fma"}
_BETTER_ELSEWHERE = {"avx_vnni", "avx512_vnni"}
"""With these ONNX Runtime has kernels of another kind, which ours were not measured against."""
_TRIAL = "blockwright.compile.cpu_trial"
_PATIENCE_S = 120
"""Compiling takes about 2 s, a trial about 1 s (on two shared cores): whatever takes so long never ends."""
_DIGEST_BYTES = hashlib.sha256().digest_size


def own_library() -> Path | None:
    """The compiled operators, or None where they do not run, cannot be compiled or are not wanted.

    Raises:
        InputError: the environment variable has a value that means nothing.
    """
    if not _is_wanted() or platform.machine() != "x86_64" or not _suits(_processor_flags()):
        return None
    folder = _cache_folder()
    return None if folder is None else _working(folder)


def operators_in_use() -> str:
    """Whose operators multiply and attend in an engine here, as profiles and measurements record it."""
    return "onnxruntime" if own_library() is None else f"blockwright {VERSION}"


@functools.cache
def _working(folder: Path) -> Path | None:
    """The operators, if they say what they should in the ONNX Runtime that is installed."""
    library = compiled(SOURCES, folder)
    return library if library is not None and _is_tried(library) else None


def compiled(sources: tuple[Path, ...], folder: Path) -> Path | None:
    """The shared library of some C files and their headers, compiled once per version; None if none can be made."""
    made_of = " ".join((*_FLAGS, *platform.libc_ver())).encode() + b"".join(source.read_bytes() for source in sources)
    library = folder / f"{sources[0].stem}-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours_alone(folder):
            return None
        if _is_whole(library):
            return library
        compilers = filter(None, map(shutil.which, _COMPILERS))
        return library if any(_compiles(compiler, sources, library) for compiler in compilers) else None
    except OSError:
        return None


def _compiles(compiler: str, sources: tuple[Path, ...], library: Path) -> bool:
    """Whether a compiler makes the library; its digest is put behind it, where loaders do not look."""
    parts = [str(source) for source in sources if source.suffix == ".c"]
    try:
        with new_file(library) as temporary:
            command = [compiler, *_FLAGS, "-o", str(temporary), *parts]
            subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE_S)
            data = temporary.read_bytes()
            temporary.write_bytes(data + hashlib.sha256(data).digest())
    except subprocess.SubprocessError:
        return False
    return True


def _is_whole(library: Path) -> bool:
    """Whether a file is there and as it was written: loading half a library ends the process."""
    if not library.exists():
        return False
    data = library.read_bytes()
    return hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:]


def _is_ours_alone(folder: Path) -> bool:
    """Whether nobody else can put a library there for us to run, or the folder itself."""
    own = folder.stat()
    if own.st_uid != os.geteuid() or own.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    above = (each.stat().st_mode for each in folder.resolve().parents)
    return not any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in above)


def _is_tried(library: Path) -> bool:
    """Whether the operators work here: tried once for each library and ONNX Runtime, in a process that may crash."""
    tried = library.with_suffix(f".{_onnxruntime()}.tried")
    if tried.exists():
        return True
    try:
        subprocess.run(
            [sys.executable, "-m", _TRIAL, str(library)],
            check=True,
            capture_output=True,
            timeout=_PATIENCE_S,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        tried.touch()
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _onnxruntime() -> str:
    """The build that is installed and its version."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{package}-{version(package)}"
        except PackageNotFoundError:
            continue
    return "onnxruntime"


def _is_wanted() -> bool:
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "fastest", "onnxruntime"):
        raise InputError(
            SWITCH,
            got=wanted,
            expected="onnxruntime or fastest",
            remedy="Set it to onnxruntime to leave our own operators out, or unset it.",
        )
    return wanted != "onnxruntime"


def _suits(flags: set[str]) -> bool:
    return flags >= _NEEDED and not flags & _BETTER_ELSEWHERE


@functools.cache
def _processor_flags() -> set[str]:
    """What Linux says the processor can do; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _cache_folder() -> Path | None:
    """Where compiled operators are kept; None for somebody without a home."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        cache = told if told.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "blockwright" / "operators" if cache.is_absolute() else None
