"""Hugging Face datasets come out record by record; here from folders, for tests have no network."""

import json
import sys
from pathlib import Path

import pytest

from blockwright.errors import InputError
from blockwright.train.hub import HubName, digest_of_dataset, parse_name, read_dataset
from blockwright.train.text import read_documents

TEXTS = [[f"text {shard} {index}" for index in range(20)] for shard in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset as they stand on the hub: shards of JSON by split."""
    pytest.importorskip("datasets", reason="the extra [data] is not installed")
    place = tmp_path / "stories"
    place.mkdir()
    for shard, texts in enumerate(TEXTS):
        split = "test" if shard == 2 else "train"
        (place / f"{split}-{shard}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


@pytest.mark.parametrize(
    ("place", "name", "config", "split"),
    [
        ("hf:wikitext", "wikitext", None, "train"),
        ("hf:owner/name", "owner/name", None, "train"),
        ("hf:owner/name:test", "owner/name", None, "test"),
        ("hf:owner/name/config", "owner/name", "config", "train"),
        ("hf:owner/name/a/b:test", "owner/name", "a/b", "test"),
    ],
)
def test_names_are_read(place: str, name: str, config: str | None, split: str) -> None:
    assert parse_name(place) == HubName(name=name, config=config, split=split)


@pytest.mark.parametrize("place", ["hf:", "hf:/no/such/folder", "hf:owner/:train"])
def test_no_name_is_refused(place: str) -> None:
    with pytest.raises(InputError, match=r"hf:OWNER/NAME"):
        parse_name(place)


def test_a_split_is_read_shard_by_shard(folder: Path) -> None:
    documents = read_documents(f"hf:{folder}")
    assert [document.text for document in documents] == TEXTS[0] + TEXTS[1]
    assert documents[21].name == "stories:train#21"
    assert [document.text for document in read_documents(f"hf:{folder}:test")] == TEXTS[2]


def test_what_save_to_disk_left_is_read(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra [data] is not installed")
    one = datasets.Dataset.from_dict({"body": TEXTS[0]})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": one}).save_to_disk(tmp_path / "more")
    for place in ("one", "more:test"):
        assert [document.text for document in read_documents(f"hf:{tmp_path}/{place}[body]")] == TEXTS[0]
    with pytest.raises(InputError, match="train"):
        read_documents(f"hf:{tmp_path}/more[body]")


def test_reading_stops_where_the_reader_does(folder: Path) -> None:
    (folder / "train-1.jsonl").write_text("broken")
    records = read_dataset(f"hf:{folder}", "text")
    assert [text for _, text in (next(records) for _ in range(20))] == TEXTS[0]
    with pytest.raises(InputError, match="after record 19"):
        next(records)


def test_a_split_or_field_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="validation"):
        read_documents(f"hf:{folder}:validation")
    with pytest.raises(InputError, match="record 0: got the fields text; expected text in the field 'body'"):
        read_documents(f"hf:{folder}[body]")


def test_the_digest_changes_with_the_files_and_the_split(folder: Path) -> None:
    digests = [digest_of_dataset(f"hf:{folder}{split}") for split in (":train", ":test")]
    (folder / "train-0.jsonl").write_text('{"text": "other"}\n')
    assert len({*digests, digest_of_dataset(f"hf:{folder}")}) == 3


def test_without_the_package_the_error_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"blockwright\[data\]"):
        read_documents(f"hf:{folder}")
