"""What a run cannot use is refused by name, whether it stands in a recipe or on the command line."""

import math
import re
from collections.abc import Sequence

from blockwright.errors import InputError
from blockwright.servable import BUILDABLE
from blockwright.spec import FormatName, format_words, parse_format


def check_at_least(field: str, got: float, least: float) -> None:
    """Refuses a number below `least`, an endless one, and what is no number.

    Raises:
        InputError: names the field.
    """
    if not least <= got < math.inf:
        raise InputError(field, got=got, expected=f"a finite number of at least {least}", remedy="Correct the value.")


def check_above_zero(field: str, got: float) -> None:
    """Refuses a number that is not above zero, an endless one, and what is no number.

    Raises:
        InputError: names the field.
    """
    if not 0 < got < math.inf:
        raise InputError(field, got=got, expected="a finite number above 0", remedy="Correct the value.")


def check_seed(field: str, got: int) -> None:
    """Refuses a seed that not every generator takes.

    Raises:
        InputError: names the field.
    """
    if not 0 <= got < 2**32:
        raise InputError(field, got=got, expected="a whole number from 0 to 2³² - 1", remedy="Correct the value.")


def check_folder_name(field: str, got: str) -> None:
    """Refuses a name that is no plain folder's, such as one that leads elsewhere.

    Raises:
        InputError: names the field.
    """
    if not re.fullmatch(r"\w([\w. -]*[\w-])?", got):
        raise InputError(
            field,
            got=repr(got),
            expected="the name of a folder: letters, digits, _ and -, with dots and spaces between them",
            remedy="Choose a plain name, and say where the folder stands with --out.",
        )


def check_formats(
    field: str, texts: Sequence[str], among: tuple[FormatName, ...] = BUILDABLE, remedy: str = "Choose one of these."
) -> None:
    """Refuses weight formats that cannot be measured, or whatever else is asked for, or one that is named twice.

    Raises:
        InputError: names the field.
    """
    check_distinct(field, [_canonical(field, text, among, remedy) for text in texts])


def check_distinct(field: str, names: Sequence[str]) -> None:
    """Refuses an empty list, or one that names something twice.

    Raises:
        InputError: names the field.
    """
    if not names:
        raise InputError(field, got="none", expected="at least one", remedy="Name one.")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(
            field, got=f"{', '.join(twice)} more than once", expected="each one once", remedy="Remove the repetition."
        )


def _canonical(field: str, text: str, among: tuple[FormatName, ...], remedy: str) -> str:
    try:
        weights = parse_format(text, among)
    except InputError as error:
        raise InputError(field, got=error.got, expected=error.expected, remedy=error.remedy) from error
    if weights.name not in among:
        raise InputError(
            field,
            got=repr(text),
            expected=f"a format that an engine can be built in: {format_words(among)}",
            remedy=remedy,
        )
    return str(weights)
