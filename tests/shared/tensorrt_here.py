"""Whether TensorRT-RTX is installed, which builds engines without a GPU."""

import pytest

from blockwright.compile.tensorrt_package import find_package
from blockwright.errors import InputError


def has_rtx() -> bool:
    """Whether it is, and new enough."""
    try:
        find_package(("tensorrt_rtx",))
    except InputError:
        return False
    return True


needs_rtx = pytest.mark.skipif(not has_rtx(), reason="TensorRT-RTX is needed (the extra tensorrt-rtx)")
