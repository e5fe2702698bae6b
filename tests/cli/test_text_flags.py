"""Several sources, and the field of their records, come out as one name."""

import argparse
import json
from pathlib import Path

import pytest

from blockwright.cli.flags import add_text
from blockwright.cli.main import main
from blockwright.pipeline import inputs
from blockwright.train.text import stream_documents


def _text(*words: str) -> str:
    parser = argparse.ArgumentParser()
    add_text(parser)
    return parser.parse_args(words).text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--text python", "python"),
        ("--text a --text b,c", "a,b,c"),
        ("--text a.jsonl --text-field body", "a.jsonl[body]"),
        ("--text-field body --text a.jsonl,b.jsonl[title]", "a.jsonl[body],b.jsonl[title]"),
        ("--text hf:owner/name:train --text-field body", "hf:owner/name:train[body]"),
    ],
)
def test_sources_and_fields_are_joined(words: str, text: str) -> None:
    assert _text(*words.split()) == text


def test_text_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _text("--text-field", "body")
    assert "--text" in capsys.readouterr().err


def test_a_joined_name_reads_what_the_flags_say(tmp_path: Path) -> None:
    for name, field in (("a", "body"), ("b", "title")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({field: name, "text": "x"}) + "\n")
    text = _text("--text", f"{tmp_path}/a.jsonl", "--text", f"{tmp_path}/b.jsonl[title]", "--text-field", "body")
    assert [document.text for document in stream_documents(text)] == ["a", "b"]


@pytest.fixture
def shards(small_text: Path, tmp_path: Path) -> Path:
    """The small text as records, in two shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    files = sorted(small_text.iterdir())
    for index, part in enumerate((files[:40], files[40:])):
        lines = [json.dumps({"body": file.read_text()}) + "\n" for file in part]
        (folder / f"{index}.jsonl").write_text("".join(lines))
    return folder


def _train(parent: Path, text: object, out: Path) -> int:
    words = f"library {parent} --text {text} --text-field body --window 16 --tokens 2k --mask-documents --out {out}"
    return main(words.split())


def test_a_library_learns_from_records_in_a_file_as_from_those_in_memory(
    small_parent: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _train(small_parent, shards, tmp_path / "memory/library") == 0
    monkeypatch.setattr(inputs, "MOST_TOKENS_IN_MEMORY", 1024)
    digests: list[str] = []
    for folder in ("first", "second"):
        assert _train(small_parent, shards, tmp_path / f"{folder}/library") == 0
        assert not list((tmp_path / folder).glob(".library-*")), "the tokens went with the unfinished work"
    for folder in ("memory", "first", "second"):
        index = json.loads((tmp_path / f"{folder}/library/index.json").read_text())
        assert all(entry["nmse"] < entry["initial_nmse"] * 1.5 for entry in index["entries"])
        digests.append(index["settings"]["data"])
    assert digests[0] != digests[1] == digests[2]


def test_a_broken_shard_ends_the_command_and_names_the_line(
    small_parent: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (shards / "1.jsonl").open("a") as file:
        file.write('{"body": "cut off')
    assert _train(small_parent, shards, tmp_path / "library") == 2
    assert f"{shards}/1.jsonl:21" in capsys.readouterr().err
    assert not (tmp_path / "library").exists()
