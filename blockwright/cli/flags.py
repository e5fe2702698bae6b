"""Flags that several sub-commands share, and how they are read. Loads nothing heavy."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.units import parse_quantity

_LOAD = re.compile(r"([\w.-]+)=(\d+)x(\d+)\+(\d+)")
DEFAULT_LOAD = "chat=1x128+128"


def add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """The flag for what is written."""
    parser.add_argument("-o", "--out", type=Path, default=Path(default), help=f"{what} to write (default: {default})")


def add_text(parser: argparse.ArgumentParser) -> None:
    """The flags for text and how it is cut."""
    parser.add_argument(
        "--text", required=True, help="a file or folder of text, or 'python' for the standard library's sources"
    )
    parser.add_argument("--window", type=int, default=256, metavar="TOKENS", help="length of a window (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the order of the text (default: 0)")


def add_loads(parser: argparse.ArgumentParser) -> None:
    """The flag for loads."""
    parser.add_argument(
        "--load",
        action="append",
        default=None,
        metavar="NAME=BATCHxPROMPT+NEW",
        help=f"a load: sequences at once, tokens of the prompt, new tokens; repeatable (default: {DEFAULT_LOAD})",
    )


def read_loads(texts: Sequence[str] | None) -> dict[str, Load]:
    """Reads loads as written on the command line.

    Raises:
        InputError: one of them has another form.
    """
    loads: dict[str, Load] = {}
    for text in texts or [DEFAULT_LOAD]:
        match = _LOAD.fullmatch(text)
        if not match or "0" in match.groups()[1:]:
            raise InputError(
                "--load",
                got=repr(text),
                expected=f"NAME=BATCHxPROMPT+NEW with numbers of at least 1, such as {DEFAULT_LOAD}",
                remedy="Write it in this form.",
            )
        batch, prompt, new = (int(number) for number in match.groups()[1:])
        loads[match[1]] = Load(batch=batch, prompt_tokens=prompt, new_tokens=new)
    return loads


def read_tokens(text: str, field: str) -> int:
    """Reads a number of tokens such as ``64k`` or ``1B``."""
    tokens = int(parse_quantity(text, "tokens", field))
    if tokens < 1:
        raise InputError(field, got=text, expected="at least one token", remedy="Ask for more tokens.")
    return tokens
