"""A token file holds every document's tokens once, whatever happened while it was written."""

import itertools
import json
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.model.walk import positions_within
from blockwright.train import tokens
from blockwright.train.text import Document
from blockwright.train.tokens import TokenFile, TokenWindows, key_of_tokens, token_file
from blockwright.train.windows import Batches
from forked import CONTEXT

DOCUMENTS = [Document(name=str(index), text=f"the cat é sat {index} " * (1 + index % 7)) for index in range(40)]


@pytest.fixture
def tokenizer(small_parent: Path) -> PreTrainedTokenizerFast:
    """Byte-level, with token 0 as separator."""
    return PreTrainedTokenizerFast.from_pretrained(small_parent)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenises a few documents at once."""
    monkeypatch.setattr(tokens, "_CHUNK_CHARS", 300)


def _make(
    documents: Iterator[Document], tokenizer: PreTrainedTokenizerFast, place: Path, num_tokens: int = 10**6
) -> TokenFile:
    return token_file(documents, tokenizer, place, key="0123456789abcdef", num_tokens=num_tokens)


def _files(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in place.glob("tokens-*/*")}


def test_the_documents_stand_end_to_end_each_behind_its_separator(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = _make(iter(DOCUMENTS), tokenizer, tmp_path)
    alone = [[0, *tokenizer.backend_tokenizer.encode(d.text, add_special_tokens=False).ids] for d in DOCUMENTS]
    assert file.tokens.tolist() == list(itertools.chain(*alone))
    assert file.begins.tolist() == [0, *itertools.accumulate(len(ids) for ids in alone[:-1])]
    assert file.index.num_bytes == sum(len(d.text.encode()) for d in DOCUMENTS)


def test_documents_are_taken_whole_and_no_more_than_needed(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    taken: list[Document] = []
    documents = (taken.append(document) or document for document in itertools.cycle(DOCUMENTS))
    file = _make(documents, tokenizer, tmp_path, num_tokens=200)
    last = file.begins[-1]
    assert last < 200 <= file.index.num_tokens == len(file.tokens)
    assert len(taken) < 40


def test_windows_and_their_documents_are_those_of_the_tokens(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = _make(iter(DOCUMENTS), tokenizer, tmp_path)
    count = len(file.tokens) // 16
    batch = TokenWindows(file=file, length=16, num_windows=count).read(torch.arange(count))
    assert batch.ids_BT.dtype == torch.int64
    assert batch.ids_BT.flatten().tolist() == file.tokens[: 16 * count].tolist()
    assert batch.segments_BT is not None
    begins = (positions_within(batch.segments_BT) == 0)[:, 1:]
    assert torch.equal(begins, batch.ids_BT[:, 1:] == 0)


def test_batches_of_a_file_are_fixed_by_the_seed(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    store = TokenWindows(file=_make(iter(DOCUMENTS), tokenizer, tmp_path), length=8, num_windows=20)
    first, again, other = (torch.stack([b.ids_BT for b in Batches(store, 4, 5, seed=s)]) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert sorted(first.flatten(0, 1).tolist()) == sorted(store.read(torch.arange(20)).ids_BT.tolist())


def test_a_file_goes_to_another_process_by_its_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    store = TokenWindows(file=_make(iter(DOCUMENTS * 9), tokenizer, tmp_path), length=8, num_windows=20)
    sent = pickle.dumps(store)
    assert len(sent) < 1000 < store.file.tokens.nbytes
    rows_B = torch.arange(20)
    assert torch.equal(pickle.loads(sent).read(rows_B).ids_BT, store.read(rows_B).ids_BT)


@pytest.mark.parametrize("stops_at", [0, 1, 7, 25, 39])
def test_a_kill_loses_a_chunk_at_most(stops_at: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    _make(iter(DOCUMENTS), tokenizer, tmp_path / "whole")

    def killed() -> Iterator[Document]:
        yield from DOCUMENTS[:stops_at]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _make(killed(), tokenizer, tmp_path / "killed")
    assert not _files(tmp_path / "killed")
    for file in (tmp_path / "killed").glob(".tokens-*/*[0-9]"):  # what was on its way to the disk
        file.write_bytes(file.read_bytes() + b"torn")
    progress = list((tmp_path / "killed").glob(".tokens-*/progress.json"))
    done = json.loads(progress[0].read_text())["num_documents"] if progress else 0
    assert done > stops_at - 12
    _make(iter(DOCUMENTS), tokenizer, tmp_path / "killed")
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def test_what_is_done_is_not_tokenised_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Document]:
        yield from DOCUMENTS[:25]
        raise InputError("shard", got="a hole", expected="text", remedy="Mend it.")

    with pytest.raises(InputError, match="a hole"):
        _make(broken(), tokenizer, tmp_path)
    appended: list[str] = []
    append = tokens._append

    def count(index: tokens.TokenIndex, document: Document, *rest: object) -> tokens.TokenIndex:
        appended.append(document.name)
        return append(index, document, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(tokens, "_append", count)
    _make(iter(DOCUMENTS), tokenizer, tmp_path)
    assert appended == [document.name for document in DOCUMENTS[25:]]  # all before the hole was kept
    _make(iter([]), tokenizer, tmp_path)
    assert len(appended) == 15


def test_progress_without_its_tokens_is_begun_anew(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    _make(iter(DOCUMENTS), tokenizer, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        _make((DOCUMENTS[1 // (25 - i)] and DOCUMENTS[i] for i in range(40)), tokenizer, tmp_path / "lost")
    (lost,) = (tmp_path / "lost").glob(".tokens-*/tokens.u32")
    lost.write_bytes(lost.read_bytes()[:8])
    _make(iter(DOCUMENTS), tokenizer, tmp_path / "lost")
    assert _files(tmp_path / "lost") == _files(tmp_path / "whole")


@pytest.mark.parametrize("name", ["tokens.u32", "documents.i64"])
def test_a_damaged_file_is_refused(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    _make(iter(DOCUMENTS), tokenizer, tmp_path)
    (file,) = tmp_path.glob(f"tokens-*/{name}")
    data = file.read_bytes()
    for spoilt in (data[:-1], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        file.write_bytes(spoilt)
        with pytest.raises(InputError, match="damaged"):
            _make(iter(DOCUMENTS), tokenizer, tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="damaged"):
        _make(iter(DOCUMENTS), tokenizer, tmp_path)


def test_no_text_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no token"):
        _make(iter([]), tokenizer, tmp_path)


def test_truncation_and_padding_of_the_tokenizer_do_not_touch_the_text(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = _make(iter(DOCUMENTS), tokenizer, tmp_path / "whole")
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert _make(iter(DOCUMENTS), tokenizer, tmp_path / "cut").index == whole.index


def test_the_key_changes_with_text_tokenizer_and_size(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    keys = [key_of_tokens("a", tokenizer, 9), key_of_tokens("b", tokenizer, 9), key_of_tokens("a", tokenizer, 8)]
    assert len({*keys, key_of_tokens("a", bare, 9)}) == 4
    assert key_of_tokens("a", tokenizer, 9) == keys[0]


def _write_at_once(parent: Path, place: Path) -> None:
    file = _make(iter(DOCUMENTS * 20), PreTrainedTokenizerFast.from_pretrained(parent), place)
    (place / f"{multiprocessing.current_process().name}.txt").write_text(str(len(file.tokens)))


def test_processes_at_once_make_one_file(small_parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where the processes find this module
    processes = [CONTEXT.Process(target=_write_at_once, args=(small_parent, tmp_path), name=str(i)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text()
    assert not list(tmp_path.glob(".tokens-*/"))
