"""Compiling our own operators on the machine that runs them."""

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockwright.compile import cpu_library
from blockwright.compile.cpu_library import SOURCES, SWITCH, compiled, operators_in_use, own_library
from blockwright.errors import InputError
from own_operators import own_operators  # noqa: F401

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    return source


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
    _pretend(monkeypatch, tmp_path, flags, machine)
    expected = tmp_path / "blockwright" / "operators" / "cpu_operators" if suits else None
    assert own_library() == expected


def _pretend(monkeypatch: pytest.MonkeyPatch, cache: Path, flags: set[str], machine: str = "x86_64") -> None:
    """Another processor, and operators that need neither a compiler nor a trial."""
    monkeypatch.setattr(cpu_library, "_processor_flags", lambda: flags)
    monkeypatch.setattr(cpu_library.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu_library, "compiled", lambda sources, folder: folder / sources[0].stem)
    monkeypatch.setattr(cpu_library, "_is_tried", lambda library: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def test_the_switch_leaves_everything_to_onnx_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend(monkeypatch, tmp_path, {"avx2", "fma"})
    assert operators_in_use().startswith("blockwright")
    monkeypatch.setenv(SWITCH, "onnxruntime")
    assert own_library() is None
    assert operators_in_use() == "onnxruntime"
    monkeypatch.setenv(SWITCH, "fastest")
    assert operators_in_use().startswith("blockwright")


def test_a_switch_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "none")
    with pytest.raises(InputError, match=SWITCH):
        operators_in_use()


def test_operators_that_fail_their_trial_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend(monkeypatch, tmp_path, {"avx2", "fma"})
    monkeypatch.setattr(cpu_library, "_is_tried", lambda library: False)
    assert own_library() is None


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"0"])
def test_a_library_that_is_not_whole_is_compiled_again(
    change: Callable[[bytes], bytes], source: Path, tmp_path: Path
) -> None:
    library = compiled((source,), tmp_path / "libraries")
    assert library is not None
    whole = library.read_bytes()
    library.write_bytes(change(whole))
    assert compiled((source,), tmp_path / "libraries") == library
    assert library.read_bytes() == whole


@pytest.mark.parametrize(("mode", "is_used"), [(0o700, True), (0o755, True), (0o775, False), (0o777, False)])
def test_a_folder_that_others_may_write_to_is_not_used(mode: int, is_used: bool, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "libraries"
    folder.mkdir()
    folder.chmod(mode)
    assert (compiled((source,), folder) is not None) == is_used


@pytest.mark.parametrize(("mode", "is_used"), [(0o777, False), (0o1777, True)])
def test_a_folder_that_others_may_exchange_is_not_used(mode: int, is_used: bool, source: Path, tmp_path: Path) -> None:
    above = tmp_path / "cache"
    above.mkdir()
    above.chmod(mode)
    assert (compiled((source,), above / "blockwright" / "operators") is not None) == is_used


def test_a_folder_of_somebody_else_is_not_used(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setattr(cpu_library.os, "geteuid", lambda: user + 1)
    assert compiled((source,), tmp_path / "libraries") is None


def test_a_broken_compiler_makes_room_for_the_next(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(map(shutil.which, ("gcc", "clang"))):
        pytest.skip("no second C compiler")
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert compiled((source,), tmp_path / "libraries") is not None


def test_several_may_compile_at_once(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        made = set(pool.map(lambda _: compiled((source,), tmp_path / "libraries"), range(3)))
    assert len(made) == 1
    assert None not in made
    assert list((tmp_path / "libraries").iterdir()) == list(made)


def test_without_a_home_there_are_no_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    _pretend(monkeypatch, tmp_path, {"avx2", "fma"})
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/counts/as/unset")
    assert own_library() is None


@pytest.mark.parametrize(
    "text",
    [
        "__attribute__((constructor)) static void crash(void) { __builtin_trap(); }",
        "void *RegisterCustomOps(void *options, void *base) { return *(void **)0; }",
        SOURCE,
    ],
    ids=["crashes when loaded", "crashes when called", "registers nothing"],
)
def test_a_library_that_crashes_does_so_in_its_trial(text: str, source: Path, tmp_path: Path) -> None:
    source.write_text(text)
    library = compiled((source,), tmp_path / "libraries")
    assert library is not None
    assert not cpu_library._is_tried(library)
    assert not list(library.parent.glob("*.tried"))


def test_a_trial_sees_wrong_numbers(own_operators: Path, tmp_path: Path) -> None:  # noqa: F811
    sources = tuple(tmp_path / each.name for each in SOURCES)
    for source, copy in zip(SOURCES, sources, strict=True):
        copy.write_text(source.read_text().replace("set1_epi8(8)", "set1_epi8(7)"))
    library = compiled(sources, tmp_path / "libraries")
    assert library is not None
    assert not cpu_library._is_tried(library)


def test_operators_that_work_are_tried_once(own_operators: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert cpu_library._is_tried(own_operators)
    monkeypatch.setattr(cpu_library.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    assert cpu_library._is_tried(own_operators)


def test_a_trial_that_cannot_be_made_counts_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    assert not cpu_library._is_tried(tmp_path / "library.so")
