"""Text comes out of every kind of source whole and in order, or with an error that says where it is broken."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from blockwright.errors import InputError
from blockwright.train.sources import digest_of_sources, local_paths, parse_sources
from blockwright.train.text import Document, read_documents, split, stream_documents

DATA = Path(os.environ.get("BLOCKWRIGHT_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="no real text: neither in BLOCKWRIGHT_DATA nor in shared/data beside the checkout"
)
TEXTS = [f"text {index}\nand é" for index in range(30)]


def _lines(texts: list[str], field: str = "text") -> str:
    return "".join(json.dumps({"id": index, field: text}) + "\n" for index, text in enumerate(texts))


def _write(folder: Path, kind: str, texts: list[str] = TEXTS) -> Path:
    path = folder / f"shard{kind}"
    if kind == ".jsonl":
        path.write_text(_lines(texts))
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(_lines(texts).encode()))
    else:
        table = pa.table({"id": range(len(texts)), "text": texts})
        parquet.write_table(table, path, row_group_size=7, compression="none", use_dictionary=False)
    return path


def _texts(source: object) -> list[str]:
    return [document.text for document in stream_documents(str(source))]


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".parquet"])
def test_each_record_is_a_document(kind: str, tmp_path: Path) -> None:
    path = _write(tmp_path, kind, [*TEXTS, " \n"])
    documents = read_documents(str(path))
    first = 0 if kind == ".parquet" else 1
    assert documents == [
        Document(name=f"shard{kind}#{index}", text=text) for index, text in enumerate(TEXTS, start=first)
    ]


def test_all_that_a_folder_holds_is_read(tmp_path: Path) -> None:
    for index, kind in enumerate((".jsonl", ".jsonl.gz", ".parquet")):
        _write(tmp_path, kind, TEXTS[index::4])
    (tmp_path / "a.txt").write_text(TEXTS[3])
    assert sorted(_texts(tmp_path)) == sorted([*TEXTS[0::4], *TEXTS[1::4], *TEXTS[2::4], TEXTS[3]])


def test_sources_are_joined_and_each_is_parted_as_it_is_alone(tmp_path: Path) -> None:
    first, second = _write(tmp_path, ".jsonl"), _write(tmp_path, ".parquet")
    alone = [split(read_documents(str(path))) for path in (first, second)]
    training, held_out = split(read_documents(f"{first},{second}"))
    assert (training, held_out) == tuple(a + b for a, b in zip(*alone, strict=True))


def test_a_field_stands_behind_its_source(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(_lines(["one"], field="body"))
    (tmp_path / "b.jsonl").write_text(_lines(["two"]))
    assert _texts(f"{tmp_path}/a.jsonl[body],{tmp_path}/b.jsonl") == ["one", "two"]


def test_a_path_that_is_there_is_taken_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "one,two[three].jsonl"
    path.write_text(_lines(["one"]))
    assert _texts(path) == ["one"]
    assert local_paths(str(path)) == (path,)


def test_files_that_an_output_may_not_replace_are_the_local_ones(tmp_path: Path) -> None:
    named = local_paths(f"python,{tmp_path},hf:owner/name/config:train,hf:{tmp_path},x.jsonl[body]")
    assert named == (tmp_path, tmp_path, Path("x.jsonl"))


@pytest.mark.parametrize("text", [",", "a,,b", " "])
def test_a_source_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="with commas between them"):
        parse_sources(text)


BROKEN_LINES = {
    "bad JSON": (b'{"text": "x"', "broken JSON"),
    "no UTF-8": (b'{"text": "\xff"}', "no UTF-8"),
    "no object": (b'["text"]', "a JSON list"),
    "no such field": (b'{"body": "x"}', "the fields body"),
    "no text": (b'{"text": null}', "NoneType in the field 'text'"),
    "nested too deep": (b"[" * 100_000, "broken JSON"),
}


@pytest.mark.parametrize("kind", BROKEN_LINES)
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_a_broken_line_is_named_and_what_stands_before_it_comes(kind: str, is_gzipped: bool, tmp_path: Path) -> None:
    line, told = BROKEN_LINES[kind]
    path = tmp_path / ("x.jsonl.gz" if is_gzipped else "x.jsonl")
    data = _lines(TEXTS[:4]).encode() + b"\n" + line + b"\n" + _lines(TEXTS[4:]).encode()
    path.write_bytes(gzip.compress(data) if is_gzipped else data)
    documents = stream_documents(str(path))
    assert [next(documents).text for _ in range(4)] == TEXTS[:4]
    with pytest.raises(InputError, match=told) as caught:
        next(documents)
    assert caught.value.field == f"{path}:6"


def test_a_cut_or_spoilt_gzip_file_is_named_with_the_line(tmp_path: Path) -> None:
    path = _write(tmp_path, ".jsonl.gz")
    whole = path.read_bytes()
    for data in (whole[:-9], whole[:60] + bytes(20) + whole[80:], b"no gzip"):
        path.write_bytes(data)
        documents = stream_documents(str(path))
        texts: list[str] = []
        with pytest.raises(InputError, match="broken") as caught:
            texts += (document.text for document in documents)
        assert texts == TEXTS[: len(texts)] or data != whole[:-9]
        assert caught.value.field == f"{path}:{len(texts) + 1}"


def test_broken_parquet_is_named_with_the_row(tmp_path: Path) -> None:
    path = _write(tmp_path, ".parquet")
    whole = path.read_bytes()
    at = whole.index(b"text 15")
    page = whole.rindex(b"\x15", 0, at - 40)
    for data in (whole[:-20], whole[: page - 8] + b"\xff" * 60 + whole[page + 52 :]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="broken Parquet") as caught:
            _texts(path)
        assert caught.value.field.startswith(f"{path}: row ")


def test_parquet_without_the_field_or_with_holes_in_it_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, ".parquet")
    with pytest.raises(InputError, match="the fields id, text; expected text in the field 'body'"):
        _texts(f"{path}[body]")
    with pytest.raises(InputError, match="int in the field 'id'"):
        _texts(f"{path}[id]")
    parquet.write_table(pa.table({"text": ["one", None]}), path)
    with pytest.raises(InputError, match=r"row 1: got NoneType"):
        _texts(path)


def test_the_digest_of_sources_changes_with_names_bytes_and_fields(tmp_path: Path) -> None:
    path = _write(tmp_path, ".jsonl")
    other = tmp_path / "other.jsonl"
    other.write_bytes(path.read_bytes())
    digests = [digest_of_sources(text) for text in (f"{path}", f"{other}", f"{path}[id]", f"{path},{other}")]
    path.write_text(_lines([*TEXTS, "more"]))
    digests.append(digest_of_sources(f"{path}"))
    assert len(set(digests)) == len(digests)
    assert digest_of_sources(f"{path}") == digests[-1]


@needs_data
def test_real_records_are_all_read() -> None:
    questions = read_documents(f"{DATA}/eval/gsm8k/train.jsonl[question]")
    assert len(questions) == 7473
    assert questions[0].text.startswith("Natalia sold clips to 48 of her friends")
    prompts = read_documents(f"{DATA}/eval/humaneval/HumanEval.jsonl.gz[prompt]")
    assert len(prompts) == 164 and all("def " in document.text for document in prompts)
    lambada = read_documents(f"{DATA}/eval/lambada/lambada_test.jsonl")
    assert len(lambada) == 5153
    training, held_out = split([*questions, *lambada])
    assert 0.04 < len(held_out) / len(training) < 0.06


@needs_data
def test_real_text_is_read_whole() -> None:
    novel = (DATA / "text/tinyshakespeare/input.txt").read_text()
    pieces = _texts(DATA / "text/tinyshakespeare/input.txt")
    assert "".join(pieces).replace("\n", "") == novel.replace("\n", "")
    stories = _texts(DATA / "text/tinystories/tinystories_train_first2MiB.txt")
    assert len(stories) > 2000


@needs_data
def test_real_records_without_the_field_name_those_they_have() -> None:
    with pytest.raises(InputError, match=r"train\.jsonl:1: got the fields question, answer") as caught:
        _texts(DATA / "eval/gsm8k/train.jsonl")
    assert "--text-field" in caught.value.remedy
