"""Files appear whole or not at all, and digests notice every change."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.files import digest_of, digest_of_files, new_file, new_folder, read_json, write_json


def test_a_new_file_appears_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "a/b/file.txt"
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyError), new_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with new_folder(path) as temporary:
        (temporary / "new").write_text("new")
        assert os.listdir(path) == ["old"]
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(KeyError), new_folder(path) as temporary:
        (temporary / "new").write_text("half")
        raise KeyError
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_json(path, {"a": [1, 2.5, None]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": [1, 2.5, None]}
    assert os.listdir(tmp_path) == ["data.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken JSON"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "none.json")
    assert caught.value.field == str(tmp_path / "none.json")


def test_the_digest_of_data_ignores_the_order_of_keys_only() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1, "b": [1, 2]}) != digest_of({"a": 1, "b": [2, 1]})


def test_the_digest_of_files_changes_with_contents_names_and_places(tmp_path: Path) -> None:
    def digest(files: dict[str, str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return digest_of_files([folder])

    trees: list[dict[str, str]] = [
        {"a": "1", "b": "2"},
        {"a": "1", "b": "3"},
        {"a": "1", "c": "2"},
        {"a": "1", "sub/b": "2"},
        {"a": "2", "b": "1"},
        {"a": "1"},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest(trees[0]) == digest(trees[0])


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
    names = (".a.b.settings", ".a.b.backup_1", ".a.b.20261122x", ".acb.kq3x_t0z", "a.b.x")
    others = [tmp_path / name for name in names]
    for other in others:
        other.mkdir(mode=0o700)
        (other / "mine").touch()
    for other in others[2:]:
        other.with_name(f"{other.name}.unfinished").touch()
    (tmp_path / ".a.b.kq3x_t0z").symlink_to(others[4])
    (tmp_path / ".a.b.kq3x_t0z.unfinished").touch()
    with new_folder(path):
        pass
    assert all((other / "mine").exists() for other in others)
