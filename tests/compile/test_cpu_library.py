"""Compiling our own operators on the machine that runs them."""

from pathlib import Path

import pytest

from blockwright.compile import cpu_library
from blockwright.compile.cpu_library import compiled, own_library

SOURCE = "int answer(void) { return 42; }\n"


def test_a_source_is_compiled_once_and_again_when_it_changes(tmp_path: Path) -> None:
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    library = compiled((source,), tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    before = library.stat().st_mtime_ns
    assert compiled((source,), tmp_path) == library
    assert library.stat().st_mtime_ns == before
    source.write_text(SOURCE.replace("42", "43"))
    assert compiled((source,), tmp_path) != library


def test_what_does_not_compile_is_done_without_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source.c"
    source.write_text("no C at all")
    assert compiled((source,), tmp_path / "libraries") is None
    assert not list((tmp_path / "libraries").glob("*"))


def test_without_a_compiler_there_are_no_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    assert compiled((source,), tmp_path / "libraries") is None


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    (tmp_path / "file").write_text("")
    assert compiled((source,), tmp_path / "file" / "folder") is None


@pytest.mark.parametrize(
    ("flags", "machine", "suits"),
    [
        ({"avx2", "fma"}, "x86_64", True),
        ({"avx2"}, "x86_64", False),
        ({"avx2", "fma", "avx512_vnni"}, "x86_64", False),
        (set[str](), "x86_64", False),
        ({"avx2", "fma"}, "aarch64", False),
    ],
)
def test_operators_are_for_the_processors_that_they_were_measured_on(
    flags: set[str], machine: str, suits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_library, "_processor_flags", lambda: flags)
    monkeypatch.setattr(cpu_library.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu_library, "compiled", lambda sources, folder: folder / sources[0].stem)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = tmp_path / "blockwright" / "cpu_operators" if suits else None
    assert own_library.__wrapped__() == expected
