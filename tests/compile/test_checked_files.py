"""Files of an engine are held against their sums when they are opened, and not again until they change."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from blockwright.compile import checked_files
from blockwright.compile.checked_files import check_once
from blockwright.compile.device_session import DeviceDecoder
from blockwright.compile.engine import (
    DATA_FILE,
    ENGINE_FILE,
    GRAPH_FILE,
    EngineOrder,
    SessionSettings,
    StoredFile,
    write_engine,
)
from blockwright.compile.session import Decoder
from blockwright.compile.tensorrt_package import Package
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.errors import InputError
from blockwright.files import write_json
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Attention, Block, GatedFFN
from blockwright.strict import to_data
from tensorrt_on_cpu import engine_of

NAME = "model.plan"
SIZE = 1000
LAYERS = (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=64)),)
MODEL = llama(LAYERS, hidden_size=32, num_heads=2, head_dim=16, vocab_size=40, max_positions=32)


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where marks are made: of any file, and as if each had been written long ago."""
    monkeypatch.setattr(checked_files, "SMALL_BYTES", 0)
    monkeypatch.setattr(checked_files, "_SETTLED_S", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blockwright" / "checked"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, StoredFile]:
    return _written(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files whose every byte was read, as they come."""
    found: list[str] = []
    check = checked_files.check_digests

    def counted(folder: Path, files: dict[str, StoredFile]) -> None:
        found.extend(files)
        check(folder, files)

    monkeypatch.setattr(checked_files, "check_digests", counted)
    return found


def _written(folder: Path) -> dict[str, StoredFile]:
    data = os.urandom(SIZE)
    (folder / NAME).write_bytes(data)
    return {NAME: StoredFile(size_bytes=SIZE, sha256=sha256(data).hexdigest())}


def _listed(marks: Path) -> list[str]:
    return os.listdir(marks) if marks.exists() else []


def _flip(path: Path) -> None:
    """Changes a bit in the middle; size and time of writing stay what they were, and the time of change does not."""
    look, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    deadline = time.monotonic() + 60
    while path.stat().st_ctime_ns == look.st_ctime_ns:  # its grain may be 10 ms
        assert time.monotonic() < deadline, "the time of change stands still"
        path.write_bytes(data)
        os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns))


def test_a_large_file_is_read_once(marks: Path, files: dict[str, StoredFile], read: list[str], tmp_path: Path) -> None:
    for _ in range(3):
        check_once(tmp_path, files)
    assert read == [NAME] and len(list(marks.iterdir())) == 1


def test_it_is_read_again_when_it_was_written_again(
    marks: Path, files: dict[str, StoredFile], read: list[str], tmp_path: Path
) -> None:
    check_once(tmp_path, files)
    check_once(tmp_path, _written(tmp_path))
    assert read == [NAME, NAME] and len(list(marks.iterdir())) == 2


def test_a_bit_that_differs_is_found_before_and_after_it_was_right_once(
    marks: Path, files: dict[str, StoredFile], tmp_path: Path
) -> None:
    for _ in range(2):
        _flip(tmp_path / NAME)
        with pytest.raises(
            InputError, match=r"model\.plan: got other bytes .*engine\.json\. It was .* compile it again"
        ):
            check_once(tmp_path, files)
        _flip(tmp_path / NAME)
        check_once(tmp_path, files)


def test_a_small_file_is_read_each_time_and_leaves_no_mark(
    marks: Path, files: dict[str, StoredFile], read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_files, "SMALL_BYTES", SIZE)
    for _ in range(2):
        check_once(tmp_path, files)
    assert read == [NAME, NAME] and not marks.exists()


def test_what_was_written_a_moment_ago_is_read_again(
    marks: Path, files: dict[str, StoredFile], read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_files, "_SETTLED_S", 3600.0)
    for _ in range(2):
        check_once(tmp_path, files)
    assert read == [NAME, NAME] and not marks.exists()


def test_where_no_mark_can_be_made_files_are_read_each_time(
    marks: Path, files: dict[str, StoredFile], read: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        check_once(tmp_path, files)
    assert read == [NAME, NAME]


def test_marks_do_not_pile_up(marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "_MOST_MARKS", 3)
    for _ in range(5):
        check_once(tmp_path, _written(tmp_path))
    assert len(list(marks.iterdir())) == 3


def test_the_marks_that_nobody_used_for_longest_go_first(
    marks: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_files, "_MOST_MARKS", 2)
    engines = [tmp_path / name for name in ("used", "unused", "new")]
    for engine in engines:
        engine.mkdir()
    used, unused, new = [(engine, _written(engine)) for engine in engines]
    for age, engine in ((2, used), (1, unused)):
        before = set(_listed(marks))
        check_once(*engine)
        (mark,) = set(_listed(marks)) - before
        os.utime(marks / mark, (1e9 - age, 1e9 - age))
    check_once(*used)
    check_once(*new)
    read.clear()
    check_once(*used)
    assert not read
    check_once(*unused)
    assert read == [NAME]


def test_what_others_put_beside_marks_stays(marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "_MOST_MARKS", 1)
    (marks / ("0" * 64)).mkdir(parents=True)
    others = {"notes.txt", "0" * 63, "0" * 64 + ".1"}
    for name in others:
        (marks / name).write_text("mine")
    for _ in range(3):
        check_once(tmp_path, _written(tmp_path))
    assert len(_listed(marks)) == len(others) + 1 + 1 and others <= set(_listed(marks))


def test_marks_that_others_can_make_are_neither_trusted_nor_made(
    marks: Path, files: dict[str, StoredFile], read: list[str], tmp_path: Path
) -> None:
    check_once(tmp_path, files)
    marks.chmod(0o777)
    check_once(tmp_path, files)
    check_once(tmp_path, _written(tmp_path))
    assert read == [NAME] * 3 and len(_listed(marks)) == 1


def test_a_file_that_was_mended_while_it_was_read_leaves_no_mark(
    marks: Path, files: dict[str, StoredFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say that the file was right as it looked before."""
    check = checked_files.check_digests

    def mended(folder: Path, files: dict[str, StoredFile]) -> None:
        _flip(folder / NAME)
        check(folder, files)

    _flip(tmp_path / NAME)
    monkeypatch.setattr(checked_files, "check_digests", mended)
    check_once(tmp_path, files)
    assert _listed(marks) == []
    monkeypatch.setattr(checked_files, "check_digests", check)
    check_once(tmp_path, files)
    assert len(_listed(marks)) == 1, "left alone, it does"


@pytest.mark.parametrize("name", [DATA_FILE, GRAPH_FILE])
@pytest.mark.parametrize("open_engine", [Decoder.open, lambda folder: DeviceDecoder.open(folder, "cpu")])
def test_an_engine_with_a_bit_that_differs_is_not_opened(
    name: str, open_engine: Callable[[Path], object], marks: Path, tmp_path: Path
) -> None:
    settings = SessionSettings(num_threads=1)
    order = EngineOrder(model=MODEL, weights_format=None, num_positions=32, session=settings, built_from="digest")
    write_engine(order, random_weights(MODEL), tmp_path)
    open_engine(tmp_path)
    _flip(tmp_path / name)
    with pytest.raises(InputError, match="other bytes than were written"):
        open_engine(tmp_path)


def test_a_plan_with_a_bit_that_differs_does_not_come_to_tensorrt(
    marks: Path, files: dict[str, StoredFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / ENGINE_FILE, to_data(replace(engine_of(MODEL, 32), files=files)))
    package = Package(name="tensorrt_rtx", version="1.7.1", trt=None)  # asked for anything, it would raise
    monkeypatch.setattr("blockwright.compile.tensorrt_session.find_package", lambda names: package)
    monkeypatch.setattr("blockwright.compile.tensorrt_session.gpu_capability", lambda: "sm86")
    _flip(tmp_path / NAME)
    with pytest.raises(InputError, match=r"model\.plan: got other bytes than were written"):
        TensorRtDecoder.open(tmp_path)
