"""How candidates begin, as written on the command line."""

import pytest

from blockwright.cli.init_flags import read_init
from blockwright.errors import InputError
from blockwright.train.initialise import InitSettings


def test_what_is_not_named_stays_as_it_is_by_default() -> None:
    assert read_init("") == InitSettings()
    assert read_init("kv-heads=first, ridge=1e-2") == InitSettings(kv_heads="first", ridge=0.01)
    assert read_init("channels=iterative,linear=product").channels == "iterative"


@pytest.mark.parametrize("text", ["heads=first", "channels=best", "channels", "ridge=x", "ridge=2", "linear=none"])
def test_an_unknown_way_to_begin_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match="init"):
        read_init(text)
