"""Compiling our own operators on the machine that runs them."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockwright.compile import cpu_library
from blockwright.compile.cpu_library import (
    SWITCH,
    Unusable,
    compiled,
    operators_in_use,
    own_library,
    why_missing,
)
from blockwright.errors import InputError

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


def test_a_source_is_compiled_once_and_again_when_it_changes(source: Path, tmp_path: Path) -> None:
    library = compiled((source,), tmp_path)
    before = library.stat().st_mtime_ns
    assert compiled((source,), tmp_path) == library
    assert library.stat().st_mtime_ns == before
    source.write_text(SOURCE.replace("42", "43"))
    assert compiled((source,), tmp_path) != library


def test_what_does_not_compile_is_done_without_and_leaves_no_library(source: Path, tmp_path: Path) -> None:
    source.write_text("no C at all")
    with pytest.raises(Unusable, match=r"fails: .*error"):
        compiled((source,), tmp_path / "libraries")
    assert not list((tmp_path / "libraries").glob("*.so"))


def test_what_failed_to_compile_is_tried_again_when_asked_to_or_with_another_compiler(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries, tools = tmp_path / "libraries", tmp_path / "tools"
    _pretend_compiler(tools, "exit 1", monkeypatch)
    for _ in range(2):
        with pytest.raises(Unusable, match="exit status 1"):
            compiled((source,), libraries)
    assert _runs(tools) == 1
    (mark,) = libraries.glob("*.failed")
    with pytest.raises(Unusable, match=f"remove {mark}"):
        compiled((source,), libraries)
    mark.unlink()
    with pytest.raises(Unusable, match="exit status 1"):
        compiled((source,), libraries)
    assert _runs(tools) == 2
    _pretend_compiler(tools, 'while [ "$1" != -o ]; do shift; done; echo > "$2"', monkeypatch)
    assert compiled((source,), libraries).exists()


def _pretend_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only one that is found; it counts its runs."""
    folder.mkdir(exist_ok=True)
    compiler = folder / "cc"
    compiler.write_text(f"#!/bin/sh\necho >> {folder}/runs\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def _runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_a_compiler_that_never_ends_is_not_waited_for_twice(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_compiler(tmp_path / "tools", "while :; do :; done", monkeypatch)
    monkeypatch.setattr(cpu_library, "_PATIENCE_S", 0.1)
    for _ in range(2):
        with pytest.raises(Unusable, match=r"not done after 0\.1 s"):
            compiled((source,), tmp_path / "libraries")
    assert _runs(tmp_path / "tools") == 1


def test_without_a_compiler_there_are_no_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    with pytest.raises(Unusable, match="no C compiler: install cc, gcc or clang"):
        compiled((source,), tmp_path / "libraries")


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match="file"):
        compiled((source,), tmp_path / "file" / "folder")


WIDE = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}


@pytest.mark.parametrize(
    ("flags", "machine", "suits"),
    [
        ({"avx2", "fma"}, "x86_64", True),
        ({"avx2"}, "x86_64", False),
        ({"avx2", "fma", "avx512_vnni"}, "x86_64", False),
        ({"avx2", "fma", "avx_vnni", "AuthenticAMD"}, "x86_64", False),
        ({*WIDE, "avx_vnni", "AuthenticAMD"}, "x86_64", True),
        ({*WIDE, "GenuineIntel"}, "x86_64", False),
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
    assert why_missing() is None, "nobody misses them where they are not for"


def _pretend(monkeypatch: pytest.MonkeyPatch, cache: Path, flags: set[str], machine: str = "x86_64") -> None:
    """Another processor, and operators that need neither a compiler nor a trial."""
    monkeypatch.setattr(cpu_library, "_processor_flags", lambda: flags)
    monkeypatch.setattr(cpu_library.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu_library, "compiled", lambda sources, folder: folder / sources[0].stem)
    monkeypatch.setattr(cpu_library, "check_works", lambda library: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def test_the_switch_leaves_everything_to_onnx_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend(monkeypatch, tmp_path, {"avx2", "fma"})
    assert operators_in_use().startswith("blockwright")
    monkeypatch.setenv(SWITCH, "onnxruntime")
    assert own_library() is None
    assert operators_in_use() == "onnxruntime"
    monkeypatch.setenv(SWITCH, "fastest")
    assert operators_in_use().startswith("blockwright")


def test_profiles_tell_the_wider_products_from_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend(monkeypatch, tmp_path, {"avx2", "fma"})
    narrow = operators_in_use()
    _pretend(monkeypatch, tmp_path, {*WIDE, "AuthenticAMD"})
    assert operators_in_use() == f"{narrow}, avx512_vnni"


def test_a_switch_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "none")
    with pytest.raises(InputError, match=SWITCH):
        operators_in_use()


def test_the_switch_asks_for_ours_where_they_were_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend(monkeypatch, tmp_path, {"avx2", "fma", "avx512_vnni"})
    assert own_library() is None
    monkeypatch.setenv(SWITCH, "blockwright")
    assert own_library() is not None
    assert operators_in_use().startswith("blockwright")


@pytest.mark.parametrize(("flags", "reason"), [({"avx2"}, "AVX2 and FMA"), ({"avx2", "fma"}, "it crashed")])
def test_ours_that_are_asked_for_and_cannot_be_had_are_refused(
    flags: set[str], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend(monkeypatch, tmp_path, flags)
    monkeypatch.setattr(cpu_library, "check_works", _crashes)
    monkeypatch.setenv(SWITCH, "blockwright")
    with pytest.raises(InputError, match=reason):
        own_library()


def _crashes(library: Path) -> None:
    raise Unusable("it crashed")


def test_operators_that_fail_their_trial_are_not_used_and_it_is_known_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend(monkeypatch, tmp_path, {"avx2", "fma"})
    monkeypatch.setattr(cpu_library, "check_works", _crashes)
    assert own_library() is None
    assert why_missing() == "it crashed"
    monkeypatch.setenv(SWITCH, "onnxruntime")
    assert why_missing() is None, "nobody misses them who does not want them"


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"0"])
def test_a_library_that_is_not_whole_is_compiled_again(
    change: Callable[[bytes], bytes], source: Path, tmp_path: Path
) -> None:
    library = compiled((source,), tmp_path / "libraries")
    whole = library.read_bytes()
    library.write_bytes(change(whole))
    assert compiled((source,), tmp_path / "libraries") == library
    assert library.read_bytes() == whole


@pytest.mark.parametrize(("mode", "is_used"), [(0o700, True), (0o755, True), (0o775, False), (0o777, False)])
def test_a_folder_that_others_may_write_to_is_not_used(mode: int, is_used: bool, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "libraries"
    folder.mkdir()
    folder.chmod(mode)
    assert _is_used(source, folder) == is_used


def _is_used(source: Path, folder: Path) -> bool:
    try:
        return compiled((source,), folder).exists()
    except Unusable as error:
        assert "ours alone" in str(error)
        return False


@pytest.mark.parametrize(("mode", "is_used"), [(0o777, False), (0o1777, True)])
def test_a_folder_that_others_may_exchange_is_not_used(mode: int, is_used: bool, source: Path, tmp_path: Path) -> None:
    above = tmp_path / "cache"
    above.mkdir()
    above.chmod(mode)
    assert _is_used(source, above / "blockwright" / "operators") == is_used


def test_a_folder_of_somebody_else_is_not_used(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setattr(cpu_library.os, "geteuid", lambda: user + 1)
    assert not _is_used(source, tmp_path / "libraries")


def test_a_broken_compiler_makes_room_for_the_next(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(map(shutil.which, ("gcc", "clang"))):
        pytest.skip("no second C compiler")
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert compiled((source,), tmp_path / "libraries").exists()
    assert not list((tmp_path / "libraries").glob("*.failed"))


def test_several_may_compile_at_once(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        made = set(pool.map(lambda _: compiled((source,), tmp_path / "libraries"), range(3)))
    assert len(made) == 1
    assert list((tmp_path / "libraries").iterdir()) == list(made)


def test_without_a_home_there_are_no_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    _pretend(monkeypatch, tmp_path, {"avx2", "fma"})
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/counts/as/unset")
    assert own_library() is None
    assert "XDG_CACHE_HOME" in (why_missing() or "")
