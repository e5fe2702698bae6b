"""The operators of our own for processors: C beside this file, compiled on the machine that runs them.

Where there is no C compiler, another kind of processor, no folder that is ours alone, or an ONNX Runtime that they do
not work in, engines run on ONNX Runtime's operators: the same numbers, slower.
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blockwright.compile.user_cache import cache_folder, is_ours_alone
from blockwright.errors import InputError
from blockwright.files import new_file

SOURCES = tuple(
    Path(__file__).with_name(f"cpu_{name}")
    for name in ("operators.c", "int4.c", "int4_wide.c", "attention.c", "operators.h")
)
VERSION = 1
"""To be raised when the operators become faster or slower: profiles measured with another one are refused then."""
SWITCH = "BLOCKWRIGHT_CPU_OPERATORS"
"""`onnxruntime` leaves everything to ONNX Runtime; `blockwright` asks for ours wherever they run at all, measured to be
faster or not; `fastest`, as if it were unset, for ours where they were."""
RUNTIMES_OWN = "onnxruntime"
_OURS = "blockwright"
_FASTEST = "fastest"
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-mavx2", "-mfma", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,nodelete")
"""The last one: once loaded, never unloaded, for sessions may still hold pointers into it."""
_NEEDED = {"avx2", "fma"}
_BETTER_ELSEWHERE = {"avx_vnni", "avx512_vnni"}
"""With these ONNX Runtime has kernels of another kind."""
_WIDE = {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
"""With all of these `cpu_int4_wide.c` runs."""
_AMD = "AuthenticAMD"
"""Whose processors with `_WIDE` ours were measured on: a Zen 5, faster than ONNX Runtime's (benchmarks/results,
decode_*). Intel's, and those with less than `_WIDE`, nobody has measured."""
_REGISTER = 8
"""Numbers of 256 bits."""
_TRIAL = "blockwright.compile.cpu_trial"
_TRIAL_FILE = Path(__file__).with_name("cpu_trial.py")
_PATIENCE_S = 120
"""Compiling takes about 2 s, a trial about 1 s (on two shared cores): whatever takes so long never ends."""
_DIGEST_BYTES = hashlib.sha256().digest_size


class Unusable(Exception):
    """Says why operators of our own cannot be used, for people."""


def own_library() -> Path | None:
    """The compiled operators, or None where they do not run, cannot be compiled or are not wanted.

    Raises:
        InputError: the environment variable has a value that means nothing, or asks for what cannot be had here.
    """
    return _found()[0]


def why_missing() -> str | None:
    """Why the operators do not run on a processor that they are for; None where they do, or are not wanted.

    Raises:
        InputError: as `own_library`.
    """
    return _found()[1]


def operators_in_use() -> str:
    """Whose operators multiply and attend in an engine here, as profiles and measurements record it."""
    if own_library() is None:
        return RUNTIMES_OWN
    return f"{_OURS} {VERSION}" + (", avx512_vnni" if _processor_flags() >= _WIDE else "")


def attends(head_dim: int) -> bool:
    """Whether our own attention knows heads of this size; what it does not know stays with ONNX Runtime."""
    return head_dim > 0 and head_dim % _REGISTER == 0


def _found() -> tuple[Path | None, str | None]:
    """The operators, or why there are none where they are expected."""
    wanted, flags = _wanted(), _processor_flags() if platform.machine() == "x86_64" else set[str]()
    if wanted == RUNTIMES_OWN or (wanted == _FASTEST and not _suits(flags)):
        return None, None
    if flags >= _NEEDED:
        library, reason = _working(cache_folder("operators"))
    else:
        library, reason = None, "they want Linux on an x86-64 processor with AVX2 and FMA"
    if library is None and wanted == _OURS:
        raise InputError(
            SWITCH,
            got=f"{wanted}, which cannot be had here: {reason}",
            expected=f"{wanted} only where our own operators run",
            remedy="Mend that, or unset it.",
        )
    return library, reason


@functools.cache
def _working(folder: Path | None) -> tuple[Path | None, str | None]:
    """The operators, if they say what they should in the ONNX Runtime that is installed, or why there are none."""
    try:
        if folder is None:
            raise Unusable("there is no home to keep them in: set XDG_CACHE_HOME to a folder")
        library = compiled(SOURCES, folder)
        check_works(library)
    except Unusable as error:
        return None, str(error)
    return library, None


def compiled(sources: tuple[Path, ...], folder: Path, *more_flags: str) -> Path:
    """The shared library of some C files and their headers, compiled once per version.

    Raises:
        Unusable: none can be made.
    """
    made_of = " ".join((*_FLAGS, *more_flags, *platform.libc_ver())).encode() + b"".join(
        source.read_bytes() for source in sources
    )
    library = folder / f"{sources[0].stem}-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_ours_alone(folder):
            raise Unusable(f"{folder} or a folder above it is not ours alone to write to")
        if not _is_whole(library):
            _compile(sources, library, more_flags)
    except OSError as error:
        raise Unusable(f"{error.filename or folder}: {error.strerror or error}") from error
    return library


def _compile(sources: tuple[Path, ...], library: Path, more_flags: tuple[str, ...]) -> None:
    """Makes the library with the first compiler that can; that none could is remembered until there are others."""
    compilers = list(filter(None, map(shutil.which, _COMPILERS)))
    if not compilers:
        raise Unusable(f"there is no C compiler: install {', '.join(_COMPILERS[:-1])} or {_COMPILERS[-1]}")
    asked = " ".join(f"{compiler} {Path(compiler).stat().st_mtime_ns}" for compiler in compilers)
    mark = library.with_suffix(f".{hashlib.sha256(asked.encode()).hexdigest()[:8]}.failed")
    _refuse_marked(mark)
    reasons: list[str] = []
    for compiler in compilers:
        try:
            _compile_with(compiler, sources, library, more_flags)
        except subprocess.SubprocessError as error:
            reasons.append(f"{compiler} fails: {_words(error)}")
        else:
            return
    raise _marked(mark, reasons[0])


def _compile_with(compiler: str, sources: tuple[Path, ...], library: Path, more_flags: tuple[str, ...]) -> None:
    """Makes the library; its digest is put behind it, where loaders do not look."""
    parts = [str(source) for source in sources if source.suffix == ".c"]
    with new_file(library) as temporary:
        command = [compiler, *_FLAGS, *more_flags, "-o", str(temporary), *parts]
        subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE_S)
        data = temporary.read_bytes()
        temporary.write_bytes(data + hashlib.sha256(data).digest())


def check_works(library: Path) -> None:
    """Tries the operators, once for each library, trial and ONNX Runtime, in a process that may crash.

    Raises:
        Unusable: they crash or say something else than they should.
    """
    runtime, trial = _onnxruntime(), hashlib.sha256(_TRIAL_FILE.read_bytes()).hexdigest()[:8]
    tried, failed = (library.with_suffix(f".{runtime}.{trial}.{how}") for how in ("tried", "failed"))
    if tried.exists():
        return
    _refuse_marked(failed)
    try:
        subprocess.run(
            [sys.executable, "-m", _TRIAL, str(library)],
            check=True,
            capture_output=True,
            timeout=_PATIENCE_S,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        tried.touch()
    except OSError as error:
        raise Unusable(f"they could not be tried: {error}") from error
    except subprocess.SubprocessError as error:
        raise _marked(failed, f"they fail their trial in {runtime}: {_words(error)}") from error


def _marked(mark: Path, reason: str) -> Unusable:
    """An error that is remembered, for whoever comes next would wait for the same."""
    try:
        mark.write_text(reason)
    except OSError:  # then it is found out anew
        return Unusable(reason)
    return Unusable(_until_removed(mark, reason))


def _refuse_marked(mark: Path) -> None:
    try:
        reason = mark.read_text()
    except FileNotFoundError:
        return
    raise Unusable(_until_removed(mark, reason))


def _until_removed(mark: Path, reason: str) -> str:
    return f"{reason} (remove {mark} to have it tried again)"


def _words(error: subprocess.SubprocessError) -> str:
    """The line that tells most of what a process said."""
    if not isinstance(error, subprocess.CalledProcessError):
        return f"not done after {_PATIENCE_S} s"
    lines = error.stderr.decode(errors="replace").splitlines()
    return next((line.strip() for line in lines if "error:" in line.lower()), f"exit status {error.returncode}")


def _is_whole(library: Path) -> bool:
    """Whether a file is there and as it was written: loading half a library ends the process."""
    if not library.exists():
        return False
    data = library.read_bytes()
    return hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:]


def _onnxruntime() -> str:
    """The build that is installed and its version."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{package}-{version(package)}"
        except PackageNotFoundError:
            continue
    return "onnxruntime"


def _wanted() -> str:
    wanted = os.environ.get(SWITCH) or _FASTEST
    if wanted not in (_FASTEST, RUNTIMES_OWN, _OURS):
        raise InputError(
            SWITCH,
            got=wanted,
            expected=f"{RUNTIMES_OWN}, {_OURS} or {_FASTEST}",
            remedy=f"Set it to {RUNTIMES_OWN} to leave our own operators out, or unset it.",
        )
    return wanted


def _suits(flags: set[str]) -> bool:
    return flags >= _NEEDED and (not flags & _BETTER_ELSEWHERE or flags >= {*_WIDE, _AMD})


@functools.cache
def _processor_flags() -> set[str]:
    """What Linux says the processor can do, and its maker's name; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    told = [next((line for line in lines if line.startswith(name)), "") for name in ("flags", "vendor_id")]
    return {word for line in told for word in line.partition(":")[2].split()}
