"""What Python 3.10 lacks of what a TensorRT kit imports: Jetsons with JetPack 6 have no later one.

Packed into kits only, where `blockwright` imports it before anything else.
"""

import typing
from types import ModuleType


def complete(module: ModuleType) -> None:
    """Gives `typing` its ``assert_never``, where it has none."""
    vars(module).setdefault("assert_never", _assert_never)


def _assert_never(value: object) -> typing.NoReturn:
    raise AssertionError(f"unreachable: {value!r}")


complete(typing)
