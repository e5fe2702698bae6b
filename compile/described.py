"""What engine.json says first, before the rest is read: whose engine it is, and of which version.

Every target's engine has keys of its own, so that the wrong reader would find fault with all of them.
"""

import zipfile
from pathlib import Path
from typing import Any

from blockwright.errors import InputError
from blockwright.files import read_json

ENGINE_FILE = "engine.json"
EXPORT_FILE = "export.json"
RUNTIMES = ("onnxruntime", "tensorrt")
"""That run what we build."""
SCHEMA_VERSION = 1
_KIT_FILE = "kit.json"
"""`tensorrt_kit.KIT_FILE`, which reads this file."""
_AGAIN = "Compile the checkpoint again with this version."


def engine_target(folder: Path) -> str:
    """Who runs an engine.

    Raises:
        InputError: the folder holds none, one of another version of Blockwright, or one that does not say.
    """
    target = _described(folder).get("target")
    if target not in RUNTIMES:
        raise InputError(
            f"{folder / ENGINE_FILE}: target",
            got="no such key" if target is None else repr(target),
            expected=" or ".join(RUNTIMES),
            remedy=_AGAIN,
        )
    return target


def read_description(folder: Path, target: str) -> Any:
    """What stands in engine.json.

    Args:
        folder: the engine's.
        target: who is to run it.

    Raises:
        InputError: the folder holds no engine, one for somebody else, or one of another version of Blockwright.
    """
    data = _described(folder)
    if (found := data.get("target", target)) != target:
        raise InputError(
            str(folder),
            got=f"an engine for {found}",
            expected=f"one for {target}, the only ones that this takes",
            remedy=f"Name another, or compile the checkpoint with --target {target}.",
        )
    return data


def is_kit_file(path: Path) -> bool:
    """Whether a file is a kit that is still packed."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _KIT_FILE in archive.namelist()


def _described(folder: Path) -> dict[str, Any]:
    path = folder / ENGINE_FILE
    if not path.exists():
        _refuse_what_others_run(folder)
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(str(path), got=f"a {type(data).__name__}", expected="an engine's mapping", remedy=_AGAIN)
    if (version := data.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version",
            got=f"{version}, written by another version of Blockwright",
            expected=f"{SCHEMA_VERSION}, which this version writes",
            remedy=_AGAIN,
        )
    return data


def _refuse_what_others_run(folder: Path) -> None:
    """Says what a folder is that holds no engine, where that can be told."""
    ours = "for this command compile the checkpoint with --target onnxruntime."
    files = sorted(folder.glob("*.gguf"))
    if (folder / _KIT_FILE).exists() or is_kit_file(folder):
        unpack = f"python3 -m zipfile -e {folder} kit && " if folder.is_file() else ""
        build = f"{unpack}python3 {'kit' if unpack else folder}/build.py --out engine"
        got, remedy = "a kit", f"Build it first, on the device that is to run it: {build}"
    elif folder.is_file():
        got, remedy = "a file", "Name the folder of an engine."
    elif files:
        got, remedy = f"the GGUF file {files[0].name}", f"llama.cpp runs it: llama-cli -m {files[0]}; {ours}"
    elif (folder / EXPORT_FILE).exists():
        written = read_json(folder / EXPORT_FILE)
        target = written.get("target") if isinstance(written, dict) else None
        got, remedy = f"a checkpoint written for {target}", f"{target} runs it; {ours}"
    elif (folder / "config.json").exists():
        got, remedy = "a checkpoint", f"Compile it first: blockwright compile {folder}."
    else:
        return
    raise InputError(str(folder), got=got, expected=f"an engine's folder, with {ENGINE_FILE}", remedy=remedy)
