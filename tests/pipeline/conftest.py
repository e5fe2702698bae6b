"""Ray on this machine, started once: its workers import torch when they get their first task."""

from collections.abc import Iterator

import pytest

from blockwright.pipeline.workers import Workers, workers


@pytest.fixture(scope="session")
def two() -> Iterator[Workers]:
    """Two workers of Ray."""
    with workers("local:2") as found:
        yield found
