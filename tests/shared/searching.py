"""Loads and budgets that searches on the command line are tried with."""

from collections.abc import Callable

from blockwright.cost import Load

CHAT = Load(batch=1, prompt_tokens=40, new_tokens=24)
SERVE = tuple(Load(batch=batch, prompt_tokens=20, new_tokens=30) for batch in (1, 2, 4))
LOADS = ["--load", "chat=1x40+24", "--load", "serve=1,2,4x20+30"]
Run = Callable[..., tuple[int, str, str]]


def budget_words(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--budget", text)]
