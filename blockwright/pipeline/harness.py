"""lm-evaluation-harness: the one file that imports it, listens to it, and names its rows."""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from blockwright.errors import InputError
from blockwright.pipeline.console import say

SEED = 1234
"""Of few-shot examples, and of what tasks draw (the harness's own default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Names a row of results."""

    task: str
    metric: str
    filter: str
    """What was done to answers before they were judged; ``none`` for nothing."""


def harness_version() -> str:
    """The installed harness's version.

    Raises:
        InputError: there is none.
    """
    part("lm_eval.models.huggingface")
    return version("lm_eval")


def part(name: str) -> Any:
    """Imports a module of the harness.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            "lm-evaluation-harness",
            got=f"not installed ({error})",
            expected="the package lm-eval with its extra for Hugging Face models",
            remedy="pip install 'blockwright[eval]'",
        ) from error


@contextlib.contextmanager
def log_passed_on(*, is_heard: bool = True) -> Iterator[None]:
    """Says each kind of warning of the harness's once, with how often it came; says nothing where it is not heard."""
    logger, collected = logging.getLogger("lm_eval"), _Collected()
    before = (logger.propagate, logger.level)
    logger.addHandler(collected)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(collected)
        logger.propagate, level = before
        logger.setLevel(level)
        for message, times in collected.found.values() if is_heard else ():
            say(f"warning   {message}" + (f" (and {times - 1} like it)" if times > 1 else ""))


class _Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: dict[tuple[str, int], tuple[str, int]] = {}
        """The first message from each place in the harness, and how many came from there."""

    def emit(self, record: logging.LogRecord) -> None:
        message, times = self.found.get((record.pathname, record.lineno), (record.getMessage(), 0))
        self.found[(record.pathname, record.lineno)] = (" ".join(message.split()), times + 1)
