"""Flags that several sub-commands share, and how they are read. Loads nothing heavy."""

import argparse
import math
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
        if not match or not all(int(number) for number in match.groups()[1:]):
            raise InputError(
                "--load",
                got=repr(text),
                expected=f"NAME=BATCHxPROMPT+NEW with numbers of at least 1, such as {DEFAULT_LOAD}",
                remedy="Write it in this form.",
            )
        if match[1] in loads:
            raise InputError(
                "--load", got=f"{match[1]} more than once", expected="a name of its own", remedy="Rename one of them."
            )
        batch, prompt, new = (int(number) for number in match.groups()[1:])
        loads[match[1]] = Load(batch=batch, prompt_tokens=prompt, new_tokens=new)
    return loads


def read_tokens(arguments: argparse.Namespace) -> int:
    """Reads ``--tokens``, such as ``64k`` or ``1B``, and checks the flags that `add_text` adds.

    Raises:
        InputError: one of them cannot be, or the tokens are less than a window.
    """
    from blockwright.pipeline.recipe import LEAST_WINDOW_TOKENS, check_at_least, check_seed

    check_at_least("--window", arguments.window, LEAST_WINDOW_TOKENS)
    check_seed("--seed", arguments.seed)
    tokens = parse_quantity(arguments.tokens, "tokens", "--tokens")
    if not arguments.window <= tokens < math.inf:
        raise InputError(
            "--tokens",
            got=arguments.tokens,
            expected=f"at least the {arguments.window} of one window (--window)",
            remedy="Ask for more tokens, or for a shorter window.",
        )
    return int(tokens)
