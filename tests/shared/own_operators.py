"""Our own operators for processors, wherever they run at all, for the tests of what uses them."""

from pathlib import Path

import pytest

from blockwright.compile import cpu_library, session
from blockwright.compile.cpu_library import SOURCES, Unusable, compiled


@pytest.fixture
def own_operators(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets sessions use them, on processors too that they are not the default on."""
    if not cpu_library._processor_flags() >= {"avx2", "fma"}:
        pytest.skip("the operators need a processor with AVX2 under Linux")
    try:
        library = compiled(SOURCES, tmp_path_factory.getbasetemp() / "library")
    except Unusable as error:
        pytest.skip(str(error))
    monkeypatch.setattr(session, "own_library", lambda: library)
    return library
