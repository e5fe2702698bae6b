"""Several sources, and the field of their records, come out as one name."""

import argparse
import json
from pathlib import Path

import pytest

from blockwright.cli.flags import add_text
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
