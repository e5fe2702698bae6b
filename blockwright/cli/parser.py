"""argparse, whose errors say what was got, what was expected and what to do, as all others here do.

A wrong word on the command line ends the program as argparse would: the usage, the error, exit code 2.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from blockwright.errors import InputError

BAD_INPUT = 2
"""Exit code where the user has to mend something."""

_KINDS: dict[Callable[[str], Any] | str | None, str] = {int: "a whole number", float: "a number", Path: "a path"}
"""What flags' values are read as, in words."""
_MISSING = "the following arguments are required: "
"""How argparse begins to say so."""


def message_of(error: InputError) -> str:
    """An error as it is shown."""
    return (
        f"blockwright: error in {error.field}\n"
        f"  got       {error.got}\n"
        f"  expected  {error.expected}\n"
        f"  remedy    {error.remedy}"
    )


class Parser(argparse.ArgumentParser):
    """Reads a command line; its sub-commands are read by others like it. Nothing may be left over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, exit_on_error=False)
        self._words: list[str] = []
        """What it reads."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse, but ends the program with whatever is wrong, words that nobody reads included."""
        self._words = list(sys.argv[1:] if args is None else args)
        try:
            found, unread = super().parse_known_args(self._words, namespace)
            if unread:
                raise self._unread(unread)
        except argparse.ArgumentError as error:
            self._end(self._told(error.argument_name, error.message))
        except InputError as error:
            self._end(error)
        return found, []

    def error(self, message: str) -> NoReturn:
        """What argparse calls where no single word is wrong."""
        self._end(self._told(None, message))

    def _end(self, error: InputError) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(BAD_INPUT, f"{message_of(error)}\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            field = _name_of(action)
            example = action.default if isinstance(action.default, int | float) else _placeholder(action)
            raise InputError(
                field,
                got=repr(arg_string),
                expected=_KINDS.get(action.type, error.message),
                remedy=f"Write it so: {example if not action.option_strings else f'{field} {example}'}",
            ) from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(name) for name in action.choices]
        raise InputError(
            _name_of(action),
            got=repr(value),
            expected=f"one of {', '.join(names)}",
            remedy=_nearest(str(value), names, f"`{self.prog} --help` says more of each."),
        )

    def _unread(self, words: Sequence[str]) -> InputError:
        """Of words that nobody reads: the first flag among them, else all."""
        return self._unknown(words) or InputError(
            self.prog,
            got=f"{', '.join(map(repr, words))} too many",
            expected="the words of the usage above",
            remedy="Leave it out, or put quotes round what belongs together.",
        )

    def _unknown(self, words: Sequence[str]) -> InputError | None:
        """The first flag among words that is none; None without."""
        known = [name for action in self._actions for name in action.option_strings]
        before = words[: words.index("--")] if "--" in words else words
        flags = (word.partition("=")[0] for word in before if word.startswith("--"))
        unknown = next((flag for flag in flags if flag not in known), None)
        if unknown is None:
            return None
        return InputError(
            self.prog,
            got=f"{unknown}, a flag that it has not",
            expected="flags of the usage above",
            remedy=_nearest(unknown, known, f"`{self.prog} --help` says what each is."),
        )

    def _told(self, field: str | None, message: str) -> InputError:
        """What argparse says of a flag, or of the whole line."""
        usage = f"`{self.prog} --help` says what belongs there."
        if message.startswith(_MISSING):  # mostly for one that is written otherwise
            names = message.removeprefix(_MISSING)
            values = "a value of each" if "," in names else "a value"
            missing = InputError(names, got="nothing", expected=values, remedy=f"Add it: {usage}")
            return self._unknown(self._words) or missing
        if field is None:
            return InputError(self.prog, got=message, expected="what the usage above says", remedy=usage)
        flag = field.rpartition("/")[2]
        if message.startswith("expected"):
            remedy = f"Write it behind {flag}, as {flag}=VALUE where it begins with -."
            return InputError(flag, got="too little", expected=message.removeprefix("expected "), remedy=remedy)
        return InputError(flag, got=message, expected=f"what `{self.prog} --help` says of it", remedy="Correct it.")


def _name_of(action: argparse.Action) -> str:
    """As the user writes it."""
    return action.option_strings[-1] if action.option_strings else _placeholder(action)


def _placeholder(action: argparse.Action) -> str:
    """What stands for its value in the usage."""
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _nearest(word: str, names: Iterable[str], otherwise: str) -> str:
    found = difflib.get_close_matches(word, list(names), n=1)
    return f"Did you mean {found[0]}? {otherwise}" if found else otherwise
