"""What stands where an engine is to be written, and whether it may go: a folder is replaced as a whole."""

from pathlib import Path
from typing import Any

from blockwright.compile.described import ENGINE_FILE, EXPORT_FILE, is_kit_file
from blockwright.errors import InputError
from blockwright.files import read_json

_OWN = {ENGINE_FILE, EXPORT_FILE, "model.onnx", "model.onnx.data", "model.plan", "timing.cache", "tokenizer.json"}
"""Files of engines beside those that they name; old ones name none."""
_MOST_NAMED = 3


def check_may_be_replaced(folder: Path, target: str) -> None:
    """Refuses to replace what was compiled for another target, or a folder in which somebody put files of their own.

    A folder that does not say what it is, or is not there, is left to others to judge.

    Args:
        folder: to be written.
        target: that it is written for.

    Raises:
        InputError: names what stands there.
    """
    described = _described(folder)
    if described is None:
        return
    found = described.get("target", target)
    if found != target:
        raise InputError(
            "--out",
            got=f"{folder}, compiled for {found}",
            expected=f"a new or empty folder, or one compiled for {target}: what stands there is replaced",
            remedy=f"Name another folder with --out, or remove {folder} yourself.",
        )
    files = described.get("files")
    foreign = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in _OWN.union(files if isinstance(files, dict) else ())
        and not (path.name.startswith(".") and path.is_file())  # of the system, or of a writer that was killed
    )
    if foreign:
        more = f" and {len(foreign) - _MOST_NAMED} more" if len(foreign) > _MOST_NAMED else ""
        raise InputError(
            "--out",
            got=f"{folder}, with {', '.join(foreign[:_MOST_NAMED])}{more}, not written by compile",
            expected="a folder with nothing else in it than what compile wrote: all of it is replaced",
            remedy="Move that away, or name another folder with --out.",
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


def _described(folder: Path) -> dict[str, Any] | None:
    """What a folder says it is; None where it says nothing that can be read."""
    for name in (ENGINE_FILE, EXPORT_FILE):
        if (folder / name).is_file():
            try:
                described = read_json(folder / name)
            except InputError:  # broken: compile makes it again
                return None
            return described if isinstance(described, dict) else None
    return None
