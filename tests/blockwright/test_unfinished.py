"""What killed writers leave goes with the next one; what anybody else writes stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from blockwright import unfinished
from blockwright.files import new_file, new_folder, write_json
from blockwright.unfinished import is_left_by_writer

KILLED = """
import os, signal, sys
from pathlib import Path
from blockwright.files import new_file
with new_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
SLOW = """
import sys
from pathlib import Path
from blockwright.files import new_file
with new_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("slow")
    print("writing", flush=True)
    sys.stdin.readline()
"""
FORKING = """
import os, signal, sys
from pathlib import Path
from blockwright.files import new_file
with new_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    print("forked", flush=True)
    sys.stdin.readline()
    os._exit(0)
"""


def _mark_of(name: str, token: str = "0a1b2c3d") -> str:
    """By hand, the name of a mark of a file."""
    return f".{sha256(name.encode()).hexdigest()[:8]}.{token}.unfinished"


MARK = _mark_of("file.txt")


def _killed(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert done.returncode == -signal.SIGKILL


@contextmanager
def _writing(program: str, path: Path) -> Iterator[Callable[[], None]]:
    """A process that writes a file and waits; gives what lets it go on to its end."""
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline()
        yield process.stdin.close


def _left(folder: Path) -> list[str]:
    """What stands beside the file."""
    return sorted(name for name in os.listdir(folder) if name != "file.txt")


def test_what_a_killed_writer_left_goes_with_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_json(path, "old")
    for _ in range(2):
        _killed(path)
        (temporary,) = tmp_path.glob(".file.txt.*")
        assert temporary.read_text() == "half"
        mark = _mark_of("file.txt", temporary.suffix[1:])
        assert _left(tmp_path) == sorted([temporary.name, mark]), "its own, and not the one before"
    with new_file(path) as temporary_path:
        temporary_path.write_text("new")
    assert (os.listdir(tmp_path), path.read_text()) == (["file.txt"], "new")


def test_a_file_that_another_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with _writing(SLOW, path) as let_go:
        before = _left(tmp_path)
        write_json(path, "quick")
        assert _left(tmp_path) == before
        assert path.read_text() == '"quick"\n'
        let_go()
    assert (os.listdir(tmp_path), path.read_text()) == (["file.txt"], "slow")


def test_a_file_that_this_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with new_file(path) as temporary:
        temporary.write_text("outer")
        write_json(path, "inner")
    assert (os.listdir(tmp_path), path.read_text()) == (["file.txt"], "outer")


def test_what_a_killed_writer_has_forked_may_go_on_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with _writing(FORKING, path) as let_go:
        before = _left(tmp_path)
        write_json(path, "new")
        assert _left(tmp_path) == before
        let_go()
    deadline = time.monotonic() + 60
    while _left(tmp_path) and time.monotonic() < deadline:  # it is nobody's child here
        time.sleep(0.05)
        write_json(path, "new")
    assert os.listdir(tmp_path) == ["file.txt"]


def _system(words: list[str]) -> list[str]:
    return ["0" * 36, words[1]]


def _file_system(words: list[str]) -> list[str]:
    return [words[0], str(int(words[1]) + 1)]


@pytest.mark.parametrize("other", [_system, _file_system])
def test_what_was_written_elsewhere_stays(other: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    """Its lock may be held where it does not show here."""
    path = tmp_path / "file.txt"
    _killed(path)
    left = _left(tmp_path)
    (mark,) = (name for name in left if name.endswith(".unfinished"))
    said = (tmp_path / mark).read_text()
    (tmp_path / mark).write_text(" ".join(other(said.split())) + "\n")
    write_json(path, "new")
    assert _left(tmp_path) == left
    (tmp_path / mark).write_text(said)
    write_json(path, "new")
    assert _left(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_another_user_was_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    _killed(path)
    left = _left(tmp_path)
    (mark,) = (name for name in left if name.endswith(".unfinished"))
    os.chown(tmp_path / mark, 12345, -1)
    write_json(path, "new")
    assert _left(tmp_path) == left
    os.chown(tmp_path / mark, 0, -1)
    write_json(path, "new")
    assert _left(tmp_path) == []


def test_a_mark_that_says_nothing_yet_stays(tmp_path: Path) -> None:
    (tmp_path / MARK).touch()
    write_json(tmp_path / "file.txt", "new")
    assert _left(tmp_path) == [MARK]


def test_files_of_other_names_stay(tmp_path: Path) -> None:
    _killed(tmp_path / "file.txt")
    left = _left(tmp_path)
    write_json(tmp_path / "txt", "new")
    write_json(tmp_path / "file", "new")
    assert set(left) <= set(os.listdir(tmp_path))


def test_what_a_killed_writer_left_goes_with_the_next_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom blockwright.files import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'half').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob("*/half"))) == 1, "its own, and not the one before"
    with new_folder(path) as temporary:
        (temporary / "new").touch()
    assert (os.listdir(tmp_path), os.listdir(path)) == (["folder"], ["new"])


def test_a_folder_that_another_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with new_folder(path) as first:
        with new_folder(path) as second:
            (second / "second").touch()
        (first / "first").touch()
    assert os.listdir(path) == ["first"]
    assert os.listdir(tmp_path) == ["folder"]


def test_folders_that_merely_look_like_a_writers_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.b"
    tokens = ("0a1b2c3d", "settings", "backup_1", "20261122x")
    others = [tmp_path / name for name in (*(f".a.b.{token}" for token in tokens), ".acb.0a1b2c3e", "a.b.x")]
    for other in others:
        other.mkdir(mode=0o700)
        (other / "mine").touch()
    place = _place_here(tmp_path)
    for token in tokens[1:]:  # the first has no mark, the others have none of ours
        (tmp_path / _mark_of("a.b", token)).write_text(place)
    (tmp_path / _mark_of("a.b", "0a1b2c3e")).write_text(place)
    (tmp_path / ".a.b.0a1b2c3f").symlink_to(others[4])
    (tmp_path / _mark_of("a.b", "0a1b2c3f")).write_text(place)
    with new_folder(path):
        pass
    assert all((other / "mine").exists() for other in others)
    assert not (tmp_path / ".a.b.0a1b2c3f").is_symlink(), "the link alone went"


def _place_here(folder: Path) -> str:
    """What a mark says that was left here."""
    _killed(folder / "other" / "file.txt")
    (mark,) = (folder / "other").glob("*.unfinished")
    return mark.read_text()


def test_a_name_of_any_length_that_the_system_takes_beside_a_temporary_one_is_written(tmp_path: Path) -> None:
    longest = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX") - len("..0a1b2c3d"))
    for _ in range(2):
        _killed(tmp_path / longest)
        assert len(os.listdir(tmp_path)) == 2
    write_json(tmp_path / longest, "new")
    assert os.listdir(tmp_path) == [longest]


def test_on_windows_which_removes_no_open_file_nothing_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".unfinished" and path.exists():
            raise PermissionError(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(unfinished, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(Path, "unlink", refused)
    with new_file(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
        assert os.listdir(tmp_path) == [temporary.name]
    assert os.listdir(tmp_path) == ["file.txt"]


def test_what_writers_leave_is_told_from_what_others_name_alike(tmp_path: Path) -> None:
    _killed(tmp_path / "file.txt")
    left = _left(tmp_path)
    assert len(left) == 2 and all(is_left_by_writer(name, ["a", "file.txt"]) for name in left)
    assert not any(is_left_by_writer(name, ["file", "txt"]) for name in left)
    others = (".file.txt.original", "file.txt.0a1b2c3d", ".file.txt.", "..0a1b2c3d", _mark_of("file.txt", "original"))
    assert not any(is_left_by_writer(name, ["file.txt"]) for name in others)
