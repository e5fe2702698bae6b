"""Keeps the kernels that TensorRT-RTX compiles on the device when a plan first runs, for the next time it is opened.

TensorRT-RTX calls that a runtime cache: made by a runtime config, given to the configs of all contexts, filled while
they run, and written as bytes. It says itself whether bytes are of its own version, GPU and driver; a CUDA context must
be there by then. Full TensorRT has no such thing, and never comes here (`GpuExecutor` decides).

A file of the user's cache folder holds what one plan needs, with its SHA-256 behind it. Its name is a digest of what
the kernels are for. Whatever cannot be read or written, is cut short or of others, is passed over: then kernels are
compiled, as before there were files. Two processes may write the same file: each renames a whole one into place, and
what only the first had is compiled once more and added by whoever comes next.

Nothing of this was run on a GPU yet: how large these files are, and what they save, nobody has measured.
"""

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

from blockwright.compile.tensorrt_package import Package
from blockwright.compile.user_cache import cache_folder, is_ours_alone, remove_oldest
from blockwright.files import digest_of, new_file

MOST_BYTES = 64_000_000
"""Of one plan's kernels. A cache that outgrows it, by prompts of ever other lengths, is not written any more: the file
stays as it is. A profile's own kernels took up to 11 MB of a plan (`tensorrt_checks.KERNEL_BYTES`)."""
MOST_BYTES_OF_ALL = 512_000_000
"""Of the folder, before those that nobody opened for longest go."""
_MOST_FILES = 256
_OWN = re.compile(r"[0-9a-f]{32}\.(kernels|opening)")
"""Names of what is kept."""
_DIGEST_BYTES = hashlib.sha256().digest_size


def kernels_file(plan_sha256: str, package: Package, gpu: tuple[str, ...]) -> Path | None:
    """Where the kernels of a plan are kept; None for somebody without a home.

    Args:
        plan_sha256: of the plan.
        package: who runs it.
        gpu: all that tells GPUs and their drivers apart (`tensorrt_target.gpu_identity`).
    """
    folder = cache_folder("tensorrt")
    name = digest_of([plan_sha256, package.name, package.version, *gpu])[:32]
    return None if folder is None else folder / f"{name}.kernels"


class RuntimeCache:
    """The compiled kernels of one opened plan, shared by its contexts, and kept in a file where there is one."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._cache: Any = None
        self._kept_bytes = 0
        """How much of this cache the file held when it was last read or written here. A cache only grows."""
        self._num_texts = 0

    def attach(self, config: Any) -> None:
        """Lets the contexts of a config use the kernels that there are, and leave theirs.

        Args:
            config: an IRuntimeConfig of TensorRT-RTX. It and this object must outlive its contexts.
        """
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache is None:
                return
            self._read()
        config.set_runtime_cache(self._cache)

    def text_written(self) -> None:
        """Writes the file if kernels were added, after the first text, the second, the fourth, the eighth, …"""
        self._num_texts += 1
        is_power_of_two = self._num_texts & (self._num_texts - 1) == 0
        if self._cache is not None and self._file is not None and is_power_of_two:
            with contextlib.suppress(OSError):  # then they are compiled again next time
                self._write(self._file)

    def _read(self) -> None:
        """Takes the file's kernels, unless whoever took them last did not come to the end of a text: a bad one that
        ends its process must not end all that follow."""
        if self._file is None or _mark(self._file).exists():
            return
        with contextlib.suppress(OSError):
            data = _whole(self._file)
            if data is None or not is_ours_alone(self._file.parent):
                return
            with contextlib.suppress(OSError):  # where nobody may write, kernels are of use all the same
                _mark(self._file).touch()
                self._file.touch()  # it was used
            if self._cache.deserialize(data):
                self._kept_bytes = len(data)

    def _write(self, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_ours_alone(file.parent):
            return
        made = self._cache.serialize()
        data = b"" if made is None else bytes(memoryview(made))
        if len(data) not in (0, self._kept_bytes) and len(data) <= MOST_BYTES:
            with new_file(file) as temporary:
                temporary.write_bytes(data + hashlib.sha256(data).digest())
            self._kept_bytes = len(data)
            remove_oldest(file.parent, _OWN, _MOST_FILES, MOST_BYTES_OF_ALL)
        if self._kept_bytes:  # else the file is not ours, nor was it found good
            _mark(file).unlink(missing_ok=True)


def _mark(file: Path) -> Path:
    """There while a process has taken a file's kernels and has not come to the end of a text."""
    return file.with_suffix(".opening")


def _whole(file: Path) -> bytes | None:
    """What was written; None where there is nothing, or something else."""
    if not file.exists():
        return None
    data = file.read_bytes()
    kernels = data[:-_DIGEST_BYTES]
    return kernels if kernels and hashlib.sha256(kernels).digest() == data[-_DIGEST_BYTES:] else None
