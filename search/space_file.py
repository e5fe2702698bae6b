"""Spaces as files: the keys of `SpaceSettings` in YAML, read strictly."""

from pathlib import Path

import yaml

from blockwright.errors import InputError
from blockwright.search.space import SpaceSettings, check_space
from blockwright.spec import Model
from blockwright.strict import from_data


def read_space(path: Path, parent: Model | None = None) -> SpaceSettings:
    """Reads a space.

    Args:
        path: the YAML file.
        parent: whose layers the numbers must suit; None to leave that to `candidates`.

    Raises:
        InputError: the file is missing or no YAML, a key is unknown or of another type, or a number is none that the
            parent's layer could have; names the file and the key.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), got=error, expected="a file of candidates", remedy="Check the path, or leave the file out."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(
            str(path), got=f"no YAML ({error})".replace("\n", " "), expected="YAML", remedy="Correct the file."
        ) from error
    try:
        settings = from_data(SpaceSettings, {} if data is None else data)
        if parent is not None:
            check_space(parent, settings)
    except InputError as error:
        field = error.field.removeprefix("space.")
        where = str(path) if field in ("the file", "space_settings") else f"{path}: {field}"
        raise InputError(where, got=error.got, expected=error.expected, remedy=error.remedy) from error
    return settings
