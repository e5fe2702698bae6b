"""The flag for how candidates begin. Loads nothing heavy."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockwright.train.initialise import InitSettings


def add_init(parser: argparse.ArgumentParser) -> None:
    """The flag for how candidates begin; `read_init` reads it."""
    parser.add_argument(
        "--init",
        default="",
        metavar="KEY=WAY[,KEY=WAY…]",
        help="how candidates begin: channels=contribution, iterative or fitted; kv-heads=mean, first or importance; "
        "linear=product or least-squares; ridge=SHARE (defaults: channels=fitted, kv-heads=mean, linear=least-squares)",
    )


def read_init(text: str) -> "InitSettings":
    """Reads ``--init``.

    Raises:
        InputError: a key or a way is unknown, or the ridge is out of range.
    """
    from blockwright.strict import from_data
    from blockwright.train.initialise import InitSettings

    data: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        name = key.strip().replace("-", "_")
        try:
            data[name] = float(value) if name == "ridge" else value.strip()
        except ValueError:
            data[name] = value
    return from_data(InitSettings, data, "--init")
