"""What all stages share: a key made of everything they depend on, a folder for unfinished work, the manifest.

A stage is done when the manifest beside its output holds its key and the output is there. The key is the digest of
its settings, its input files and the code of the rooms that do the work; anything that changes makes another key, and
the stage runs again. Unfinished work stands in a hidden folder that carries the key, so that it is gone on with only
where nothing has changed.
"""

import contextlib
import functools
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import blockwright
from blockwright.errors import InputError
from blockwright.files import digest_of, digest_of_files, read_json, write_json
from blockwright.hw_profiles.device import installed_software
from blockwright.pipeline.console import say
from blockwright.pipeline.lock import LOCK, at_work, entering

MANIFEST = "manifest.json"
Made = TypeVar("Made")
"""What a stage makes."""
_ROOMS = ("compile", "hw_profiles", "model", "profiler", "search", "train")
_KEY_DIGITS = 16
"""Of a key, in the name of a folder of unfinished work."""
_CHILD = ("config.json", '"blockwright"')
_MARKS: dict[str, tuple[tuple[str, str], ...]] = {
    "compile": (("engine.json", '"schema_version"'), ("export.json", '"schema_version"')),
    "distill": (_CHILD,),
    "library": (("index.json", '"parent_folder"'),),
    "profile": (("profile.json", '"schema_version"'),),
    "realise": (_CHILD,),
}
"""By the kind of a stage that writes a folder, the files that tell such a folder, each with a word that it has."""
_MOST_NAMED = 3
"""Files in a folder that is none of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage, about to run or already done."""

    name: str
    output: Path
    inputs: dict[str, Any]
    """Everything that the output depends on, as plain data and digests."""
    home: Path | None = None
    """Where the manifest and unfinished work stand; None for the folder that the output stands in."""
    reads: tuple[Path, ...] = ()
    """Files and folders that the inputs came from, which must outlive the output."""

    def __post_init__(self) -> None:
        check_spares(self.output, self.reads)
        check_is_ours(self.output, self.name, self.folder)

    @property
    def folder(self) -> Path:
        """Where the manifest and unfinished work stand."""
        return self.output.parent if self.home is None else self.home

    @property
    def key(self) -> str:
        """The digest of the inputs and of the code that makes something of them."""
        return digest_of({"stage": self.name, "code": _code_digest(), "inputs": self.inputs})

    @property
    def work(self) -> Path:
        """The folder for unfinished work with these inputs."""
        return self.folder / f".{self.name}-{self.key[:_KEY_DIGITS]}"

    def is_done(self) -> bool:
        """Whether the output was made from these very inputs."""
        if not self.output.exists():
            return False
        entry = read_manifest(self.folder).get(self.name, {})
        return (entry.get("key"), entry.get("output")) == (self.key, self.place)

    def reuse(self, read: Callable[[], Made]) -> Made | None:
        """What was made from these very inputs before; None where there is none, or it cannot be read any more.

        Args:
            read: reads the output, or raises InputError.
        """
        if not self.is_done():
            return None
        try:
            return read()
        except InputError as error:
            say(f"{self.name:<9} made again: {error.field}: {error.got}")
            return None

    @property
    def place(self) -> str:
        """The output, from the folder of the manifest."""
        return self.output.relative_to(self.folder).as_posix()


@contextlib.contextmanager
def running(stage: Stage) -> Iterator[Path]:
    """Gives the folder for unfinished work; after the block the stage counts as done and the folder is gone.

    The block must write the output itself, whole or not at all. Meanwhile no earlier inputs count as done: a block that
    is stopped after it has written would leave their entry beside another output. Work left by the same stage with
    other inputs stays until then: it may hold the last good state of a training whose settings were changed for it.

    Raises:
        InputError: a whole run, the same stage, or one that touches the same files is at work in the same folder.
    """
    with at_work(stage.folder, stage.name, stage.output, stage.reads):
        started = time.monotonic()
        stage.work.mkdir(exist_ok=True)
        stood, before = _stamps(stage.output), _take_out(stage)
        try:
            yield stage.work
        except BaseException:
            if before is not None and _stamps(stage.output) == stood:
                _enter(stage, before)
            with contextlib.suppress(OSError):
                stage.work.rmdir()  # only where there is no work in it yet
            raise
        seconds = time.monotonic() - started
        entry = {
            "key": stage.key,
            "output": stage.place,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "inputs": stage.inputs,
            "software": installed_software() | {"blockwright": blockwright.__version__},
        }
        _enter(stage, entry)
        for work in stage.folder.glob(f".{stage.name}-" + _KEY_DIGITS * "[0-9a-f]"):
            shutil.rmtree(work, ignore_errors=True)
        say(f"{stage.name:<9} {seconds:4.0f} s  {stage.output}")


def _enter(stage: Stage, entry: dict[str, Any]) -> None:
    with entering(stage.folder):
        write_json(stage.folder / MANIFEST, read_manifest(stage.folder) | {stage.name: entry})


def _take_out(stage: Stage) -> dict[str, Any] | None:
    """Takes the entry of a stage's output out of the manifest; None where there is none."""
    with entering(stage.folder):
        manifest = read_manifest(stage.folder)
        if manifest.get(stage.name, {}).get("output") != stage.place:
            return None
        entry = manifest.pop(stage.name)
        write_json(stage.folder / MANIFEST, manifest)
        return entry


def _stamps(output: Path) -> dict[Path, tuple[int, int]]:
    """What changes when a file of an output is written anew, at the cost of a look at each."""
    looks = {path: path.stat() for path in (output, *output.rglob("*")) if path.exists()}
    return {path: (look.st_ino, look.st_mtime_ns) for path, look in looks.items()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The stages that were done in a folder, by name; none, and a warning, where the manifest is broken."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = read_json(path)
    except InputError as error:
        say(f"warning   {path} is passed over, and stages run again: {error.got}")
        return {}
    if not isinstance(manifest, dict) or not all(isinstance(entry, dict) for entry in manifest.values()):
        say(f"warning   {path} is passed over, and stages run again: no table of stages")
        return {}
    return manifest


def check_spares(output: Path, reads: Sequence[Path]) -> None:
    """Refuses an output that would replace what a stage reads, what it keeps books in, or where we stand.

    Raises:
        InputError: it would.
    """
    place = output.resolve()
    for read in reads:
        if read.resolve().is_relative_to(place):
            is_same = read.resolve() == place
            raise _refused(output, f"{output}, which is {'an input' if is_same else f'a folder with the input {read}'}")
    if Path.cwd().is_relative_to(place):
        raise _refused(output, f"{output}, the folder that this was started in, or one that it lies in")
    if place.name == MANIFEST or place.name.startswith(LOCK):
        raise _refused(output, f"{output}, where stages keep their books")


def check_is_ours(output: Path, stage: str, home: Path) -> None:
    """Refuses to replace a folder that is not empty and that no stage of this kind wrote.

    Args:
        output: where a folder is to be written.
        stage: the stage's name; those that write files have no marks and are let through.
        home: where the manifest stands.

    Raises:
        InputError: says what is in it.
    """
    kind = stage.partition("-")[0]
    if kind not in _MARKS or not output.exists() or _has_mark(output, kind):
        return
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if output.is_dir() and not names:
        return
    place = output.relative_to(home).as_posix()
    entries = read_manifest(home).items()
    if any(name.partition("-")[0] == kind and entry.get("output") == place for name, entry in entries):
        return
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    raise InputError(
        "--out",
        got=f"{output}, a folder with {', '.join(names[:_MOST_NAMED])}{more}" if names else f"the file {output}",
        expected=f"a new or empty folder, or one that {kind} wrote: what stands there is replaced",
        remedy="Name another place with --out, or remove this one yourself.",
    )


def _has_mark(output: Path, kind: str) -> bool:
    files = ((output / name, word) for name, word in _MARKS[kind])
    return any(file.is_file() and word in file.read_text(errors="replace") for file, word in files)


def check_is_no_folder(output: Path) -> None:
    """Refuses a folder where a file is to be written.

    Raises:
        InputError: it is one.
    """
    if output.is_dir():
        raise InputError(
            "--out",
            got=f"the folder {output}",
            expected="a file to write",
            remedy="Name the file too, behind the folder.",
        )


def whole(folder: Path) -> tuple[Path, ...]:
    """A folder and the files right in it, each of which an output would replace; a file is itself."""
    return (folder, *sorted(file for file in folder.glob("*") if file.is_file()))


def _refused(output: Path, got: str) -> InputError:
    return InputError(
        "--out",
        got=got,
        expected="a place of its own: what stands there is replaced",
        remedy="Name another place with --out.",
    )


@functools.cache
def _code_digest() -> str:
    """The digest of the shared words and of the rooms; the pipeline, the report and the command line only pass on."""
    folders = [Path(blockwright.__file__).parent]
    for room in _ROOMS:
        spec = importlib.util.find_spec(f"blockwright.{room}")
        assert spec is not None and spec.submodule_search_locations
        folders.append(Path(spec.submodule_search_locations[0]))
    return digest_of_files([file for folder in folders for file in sorted(folder.glob("*.py"))])
