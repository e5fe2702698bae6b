"""Trying our own operators before anything is left to them."""

import shutil
import sys
from pathlib import Path

import pytest

from blockwright.compile import cpu_library
from blockwright.compile.cpu_library import SOURCES, Unusable, check_works, compiled
from own_operators import own_operators  # noqa: F401

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    return source


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
    with pytest.raises(Unusable, match="fail their trial in onnxruntime"):
        check_works(library)
    assert not list(library.parent.glob("*.tried"))


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("cpu_int4.c", "set1_epi8(8)", "set1_epi8(7)"),
        ("cpu_int4.c", "last = end < w->num_outputs ? end : w->num_outputs", "last = PANEL"),
        ("cpu_attention.c", "if (!tile->masks[i][tile->low + j])", "if (0)"),
        ("cpu_attention.c", "+ x[d] * sines[d]", "- x[d] * sines[d]"),
        ("cpu_attention.c", "% tiles * TILE", "* 0"),
    ],
)
def test_a_trial_sees_wrong_numbers(
    file: str,
    right: str,
    wrong: str,
    own_operators: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_library, "_FLAGS", tuple(flag.replace("-O3", "-O1") for flag in cpu_library._FLAGS))
    sources = tuple(tmp_path / each.name for each in SOURCES)
    for source, copy in zip(SOURCES, sources, strict=True):
        text = source.read_text()
        assert source.name != file or text.count(right) == 1
        copy.write_text(text.replace(right, wrong) if source.name == file else text)
    with pytest.raises(Unusable, match="other numbers than numpy"):
        check_works(compiled(sources, tmp_path / "libraries"))


def test_operators_that_work_are_tried_once(own_operators: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    check_works(own_operators)
    monkeypatch.setattr(cpu_library.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    check_works(own_operators)


def test_operators_that_fail_are_tried_once_until_their_mark_is_removed(source: Path, tmp_path: Path) -> None:
    library = compiled((source,), tmp_path / "libraries")
    with pytest.raises(Unusable):
        check_works(library)
    (mark,) = library.parent.glob("*.failed")
    mark.write_text("as it was before")
    with pytest.raises(Unusable, match=f"as it was before .*{mark}"):
        check_works(library)
    mark.unlink()
    with pytest.raises(Unusable, match="fail their trial"):
        check_works(library)


def test_a_trial_that_cannot_be_made_counts_as_failed_this_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(Unusable, match="no python"):
        check_works(tmp_path / "library.so")
    assert not list(tmp_path.glob("*.failed"))
