"""Text is parted the same way everywhere, and nothing of it is lost or seen twice."""

import json
from pathlib import Path

import numpy as np
import pytest

from blockwright.errors import InputError
from blockwright.train.text import PYTHON_SOURCES, Document, digest, is_held_out, read_documents, split

DOCUMENTS = [Document(name="x", text=f"text {index}") for index in range(4000)]


def test_the_held_out_part_never_changes() -> None:
    # Written down once: a change of the rule would let training see what quality is measured on.
    assert [index for index in range(100) if is_held_out(DOCUMENTS[index])] == [24, 33, 47, 62, 91]


def test_the_held_out_part_of_the_standard_library_goes_by_names_as_when_the_demo_parent_was_trained() -> None:
    named = [Document(name=f"file-{index}.txt", text="x", is_parted_by_name=True) for index in range(100)]
    assert [index for index in range(100) if is_held_out(named[index])] == [10, 48, 56, 80, 82, 83, 93]
    assert all(document.is_parted_by_name for document in read_documents(PYTHON_SOURCES))


def test_about_one_document_in_twenty_is_held_out() -> None:
    assert 0.04 < sum(map(is_held_out, DOCUMENTS)) / len(DOCUMENTS) < 0.06


def _parts(source: object) -> tuple[set[str], set[str]]:
    training, held_out = split(read_documents(str(source)))
    return {document.text for document in training}, {document.text for document in held_out}


def _write_records(path: Path, indices: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": DOCUMENTS[index].text}) + "\n" for index in indices))


def test_a_folder_and_a_folder_in_it_are_parted_alike(tmp_path: Path) -> None:
    _write_records(tmp_path / "data/sub/a.jsonl", range(200))
    _write_records(tmp_path / "data/b.jsonl", range(200, 300))
    (tmp_path / "data/sub/c.txt").write_text("<|endoftext|>".join(document.text for document in DOCUMENTS[300:400]))
    training, held_out = _parts(tmp_path / "data")
    for part in ("data/sub", "data/sub/a.jsonl", "data/sub/c.txt"):
        training_here, held_out_here = _parts(tmp_path / part)
        assert training_here < training and held_out_here < held_out


def test_one_file_more_moves_nothing_from_one_part_to_the_other(tmp_path: Path) -> None:
    for index in range(19):
        (tmp_path / f"{index}.txt").write_text("\n\n".join(f"{index} says {line}." for line in range(3000)))
    training, held_out = _parts(tmp_path)
    (tmp_path / "20.txt").write_text("one more")
    more_training, more_held_out = _parts(tmp_path)
    assert training <= more_training and held_out <= more_held_out
    assert more_training | more_held_out == {*training, *held_out, "one more"}


def test_equal_texts_land_on_one_side_whatever_they_are_called(tmp_path: Path) -> None:
    _write_records(tmp_path / "a.jsonl", range(200))
    _write_records(tmp_path / "b.jsonl", range(200))
    for index in range(200):
        (tmp_path / f"{index}.md").write_text(f"\n{DOCUMENTS[index].text} \n\n")
    training, held_out = split(read_documents(str(tmp_path)))
    texts = [{document.text.strip() for document in part} for part in (training, held_out)]
    assert texts[0].isdisjoint(texts[1])
    assert len(training) + len(held_out) == 600


def test_pieces_of_one_long_file_go_each_by_its_own_text(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n\n".join(f"sentence {index}." for index in range(60_000)))
    documents = read_documents(str(tmp_path))
    held_out = [document for document in documents if is_held_out(document)]
    assert len(documents) > 100 and held_out
    for index, document in enumerate(documents):
        alone = tmp_path / f"alone/{index}.txt"
        alone.parent.mkdir(exist_ok=True)
        alone.write_text(document.text)
    assert [document.text for document in held_out] == [
        document.text
        for document in sorted(read_documents(str(tmp_path / "alone")), key=_number)
        if is_held_out(document)
    ]


def _number(document: Document) -> int:
    return int(document.name.split(".")[0])


def test_the_parts_are_disjoint_whole_and_independent_of_the_order() -> None:
    documents = DOCUMENTS
    training, held_out = split(documents)
    assert {document.text for document in training}.isdisjoint(document.text for document in held_out)
    assert len(training) + len(held_out) == len(documents)
    again, again_held_out = split(reversed(documents))
    assert (again[::-1], again_held_out[::-1]) == (training, held_out)


def test_text_too_short_to_part_is_refused() -> None:
    with pytest.raises(InputError, match="1 documents for training and 0 held out"):
        split(DOCUMENTS[:1])


def test_every_file_of_a_folder_is_read(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.txt").write_text(f"text {index}")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/deep.md").write_text("deep")
    (tmp_path / "blank.txt").write_text(" \n")
    documents = read_documents(str(tmp_path))
    assert [document.name for document in documents] == [*sorted(f"{i}.txt#0" for i in range(20)), "sub/deep.md#0"]
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
