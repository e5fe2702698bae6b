"""Text is parted the same way everywhere, and nothing of it is lost or seen twice."""

from pathlib import Path

import numpy as np
import pytest

from blockwright.errors import InputError
from blockwright.train.text import PYTHON_SOURCES, Document, digest, is_held_out, read_documents, split

NAMES = [f"file-{index}.txt" for index in range(4000)]


def test_the_held_out_part_never_changes() -> None:
    # Written down once: a change of the rule would let training see what quality is measured on.
    assert [index for index in range(100) if is_held_out(f"file-{index}.txt")] == [10, 48, 56, 80, 82, 83, 93]


def test_about_one_document_in_twenty_is_held_out() -> None:
    assert 0.04 < sum(map(is_held_out, NAMES)) / len(NAMES) < 0.06


def test_the_parts_are_disjoint_whole_and_independent_of_the_order() -> None:
    documents = [Document(name=name, text="x") for name in NAMES]
    training, held_out = split(documents)
    assert {document.name for document in training}.isdisjoint(document.name for document in held_out)
    assert len(training) + len(held_out) == len(documents)
    again, again_held_out = split(reversed(documents))
    assert (again[::-1], again_held_out[::-1]) == (training, held_out)


def test_text_too_short_to_part_is_refused() -> None:
    with pytest.raises(InputError, match="1 documents for training and 0 held out"):
        split([Document(name="file-0.txt", text="x")])


def test_a_folder_of_many_files_is_read_file_by_file(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.txt").write_text(f"text {index}")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/deep.md").write_text("deep")
    (tmp_path / "blank.txt").write_text(" \n")
    documents = read_documents(str(tmp_path))
    assert [document.name for document in documents] == [*sorted(f"{i}.txt" for i in range(20)), "sub/deep.md"]
    assert documents[-1].text == "deep"


def test_a_single_file_is_cut_at_its_own_separators(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("one\n<|endoftext|>\ntwo\n\ntwo\n<|endoftext|>\n\n<|endoftext|>three")
    documents = read_documents(str(path))
    assert [document.text for document in documents] == ["one", "two\n\ntwo", "three"]
    assert len({document.name for document in documents}) == 3


@pytest.mark.parametrize("break_", ["\n\n", "\n", ""])
def test_a_long_file_is_cut_without_losing_or_repeating_anything(break_: str, tmp_path: Path) -> None:
    text = break_.join(f"sentence {index}." for index in range(10_000))
    (tmp_path / "novel.txt").write_text(text)
    documents = read_documents(str(tmp_path / "novel.txt"))
    assert "".join(document.text for document in documents).replace("\n", "") == text.replace("\n", "")
    assert all(len(document.text) <= 2 * 8192 for document in documents)
    assert len(documents) > 5
    if break_:
        assert all(document.text.startswith("sentence") for document in documents)


def test_python_itself_is_a_source() -> None:
    documents = read_documents(PYTHON_SOURCES)
    assert "ast.py" in {document.name for document in documents}
    assert not any("site-packages" in document.name for document in documents)
    training, held_out = split(documents)
    assert len(training) > 10 * len(held_out) > 0


@pytest.mark.parametrize("name", ["missing", "empty", "empty.txt"])
def test_a_source_without_text_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError) as caught:
        read_documents(str(tmp_path / name))
    assert caught.value.field == "text"


def test_the_digest_changes_with_names_texts_and_where_one_ends() -> None:
    documents = [
        [Document(name="a", text="b"), Document(name="c", text="d")],
        [Document(name="c", text="d"), Document(name="a", text="b")],
        [Document(name="a", text="bc"), Document(name="", text="d")],
        [Document(name="ab", text=""), Document(name="c", text="d")],
        [Document(name="a", text="b")],
    ]
    assert len({digest(each) for each in documents}) == len(documents)


def test_files_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(InputError, match=r"a\.txt"):
        read_documents(str(tmp_path))
