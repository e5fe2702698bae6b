"""What stands where an engine is to be written, and whether it may go: a folder is replaced as a whole."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blockwright.compile.described import ENGINE_FILE, EXPORT_FILE, is_kit_file
from blockwright.errors import InputError
from blockwright.files import read_json
from blockwright.unfinished import is_left_by_writer

_OWN = {ENGINE_FILE, EXPORT_FILE, "model.onnx", "model.onnx.data", "model.plan", "timing.cache", "tokenizer.json"}
"""Files of engines beside those that they name; old ones name none."""
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that file managers leave in each folder that they show."""
_MOST_NAMED = 3


def check_may_be_replaced(folder: Path, target: str) -> None:
    """Refuses to replace what was compiled for another target, or a folder in which somebody put files of their own.

    An engine that does not say what it is may have been cut short, and is made again: its files have known names. An
    export's have not.

    Args:
        folder: to be written; it need not be there.
        target: that it is written for.

    Raises:
        InputError: names what stands there.
    """
    if not folder.is_dir():
        if folder.exists():
            raise _refused(f"the file {folder}", f"Name another folder with --out, or remove {folder} yourself.")
        return
    described = _described(folder)
    if described is None and not (folder / ENGINE_FILE).is_file() and (folder / EXPORT_FILE).is_file():
        got = f"{folder}, whose {EXPORT_FILE} is broken: nothing says which of the files there are compile's"
        raise _refused(got, f"Name another folder with --out, or remove {folder} yourself.")
    found = target if described is None else described.get("target", target)
    if found != target:
        raise InputError(
            "--out",
            got=f"{folder}, compiled for {found}",
            expected=f"a new or empty folder, or one compiled for {target}: what stands there is replaced",
            remedy=f"Name another folder with --out, or remove {folder} yourself.",
        )
    files = None if described is None else described.get("files")
    foreign = _foreign(folder, _OWN.union(files if isinstance(files, dict) else ()))
    if foreign:
        more = f" and {len(foreign) - _MOST_NAMED} more" if len(foreign) > _MOST_NAMED else ""
        by = "not written by compile" if isinstance(files, dict) else f"which no {ENGINE_FILE} names as compile's"
        raise _refused(
            f"{folder}, with {', '.join(foreign[:_MOST_NAMED])}{more}, {by}",
            "Move that away, or name another folder with --out.",
        )


def check_is_kit_or_new(path: Path) -> None:
    """Refuses to replace a file that is no kit.

    Raises:
        InputError: it is none.
    """
    if not path.exists() or path.stat().st_size == 0 or is_kit_file(path):
        return
    raise InputError(
        "--out",
        got=f"{path}, a file that is no kit",
        expected="a new file, or a kit, which is replaced",
        remedy="Name another file with --out, or remove this one yourself.",
    )


def _foreign(folder: Path, own: Iterable[str]) -> list[str]:
    """The names of all that is not known to be ours, or junk; ours are plain files."""
    known = {*own, *_JUNK}
    return sorted(
        path.name
        for path in folder.iterdir()
        if not path.is_file() or (path.name not in known and not is_left_by_writer(path.name, known))
    )


def _refused(got: str, remedy: str) -> InputError:
    expected = "a folder with nothing else in it than what compile wrote: all of it is replaced"
    return InputError("--out", got=got, expected=expected, remedy=remedy)


def _described(folder: Path) -> dict[str, Any] | None:
    """What a folder says it is; None where it says nothing that can be read."""
    for name in (ENGINE_FILE, EXPORT_FILE):
        if (folder / name).is_file():
            try:
                described = read_json(folder / name)
            except InputError:  # broken
                return None
            return described if isinstance(described, dict) else None
    return None
