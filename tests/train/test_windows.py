"""Windows hold the documents' tokens, each behind a separator, and batches pass through all of them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.train.ranks import Ranks
from blockwright.train.text import Document
from blockwright.train.windows import Batches, Windows, batches, cut_windows

DOCUMENTS = [Document(name=str(index), text=f"the cat sat {index} " * 5) for index in range(12)]


@pytest.fixture
def tokenizer(small_parent: Path) -> PreTrainedTokenizerFast:
    """Byte-level, with token 0 as separator."""
    return PreTrainedTokenizerFast.from_pretrained(small_parent)


def _decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def test_windows_are_the_shuffled_documents_end_to_end(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=1000, seed=3)
    tokens = windows.ids_NT.flatten().tolist()
    starts = [index for index, token in enumerate(tokens) if token == 0]
    assert starts[0] == 0
    assert len(starts) == len(DOCUMENTS)
    texts = [_decode(tokenizer, tokens[a + 1 : b]) for a, b in itertools.pairwise(starts)]
    assert len(set(texts)) == len(texts)
    assert set(texts) <= {document.text for document in DOCUMENTS}
    assert texts != [document.text for document in DOCUMENTS][: len(texts)]


def test_windows_take_every_nth_where_fewer_are_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    every = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=1000, seed=3).ids_NT.tolist()
    few = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=5, seed=3)
    places = [every.index(window) for window in few.ids_NT.tolist()]
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert len(places) == 5 and set(steps) <= {len(every) // 5, len(every) // 5 + 1}


def test_bytes_per_token_are_those_of_the_windows(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=1000, seed=3)
    texts = [_decode(tokenizer, [t for t in window if t != 0]) for window in windows.ids_NT.tolist()]
    assert windows.bytes_per_token == sum(len(text.encode()) for text in texts) / windows.ids_NT.numel()


MUCH = [
    Document(name=str(i), text="".join(f"document {i} says é {j} times\n" for j in range(200 + 50 * i)))
    for i in range(9)
]


def test_much_text_is_sampled_all_over(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(MUCH, tokenizer, length=32, num_windows=40, seed=0)
    sizes = np.array([len(document.text) for document in MUCH])
    per_document = np.bincount(windows.document_N, minlength=9)
    assert windows.ids_NT.shape == (40, 32)
    assert (np.sort(per_document) - np.sort(40 * sizes / sizes.sum())).__abs__().max() <= 1.5
    assert len({tuple(window) for window in windows.ids_NT.tolist()}) == 40


def test_a_sampled_window_is_a_stretch_of_its_document_from_the_beginning_of_a_line(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    windows = cut_windows(MUCH, tokenizer, length=32, num_windows=40, seed=0)
    whole = [document.text for document in MUCH]
    texts = [_decode(tokenizer, window) for window in windows.ids_NT.tolist() if 0 not in window]
    assert len(texts) > 30
    for text in texts:
        assert text.startswith("document ")
        assert any("\n" + text.rstrip("\ufffd") in document for document in whole)


def test_sampled_bytes_are_counted_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(MUCH, tokenizer, length=32, num_windows=40, seed=0)
    pieces = [tokenizer.convert_ids_to_tokens([t for t in window if t != 0]) for window in windows.ids_NT.tolist()]
    num_bytes = sum(len(token) for tokens in pieces for token in tokens)  # a byte-level token has a sign per byte
    assert windows.bytes_per_token == pytest.approx(num_bytes / windows.ids_NT.numel(), rel=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_document_has_one_number_whatever_the_seed(seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(MUCH, tokenizer, length=32, num_windows=40, seed=seed)
    assert windows.segments_NT is not None
    for ids, document, segments in zip(windows.ids_NT, windows.document_N, windows.segments_NT, strict=True):
        for segment in segments.unique().tolist():
            text = _decode(tokenizer, [t for t in ids[segments == segment].tolist() if t != 0]).rstrip("\ufffd")
            assert text in MUCH[segment].text
        assert int(segments[0]) == document


def test_windows_of_one_document_say_so(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(MUCH[:1], tokenizer, length=16, num_windows=8, seed=0)
    assert windows.document_N.tolist() == [0] * 8


def test_the_seed_alone_decides_the_order(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again, other = (
        cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=9, seed=seed).ids_NT for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_text_shorter_than_a_window_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="at least one window of 4096 tokens"):
        cut_windows(DOCUMENTS, tokenizer, length=4096, num_windows=1, seed=0)


def test_a_tokenizer_without_special_tokens_needs_no_separator(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert (cut_windows(DOCUMENTS, bare, length=16, num_windows=9, seed=3).ids_NT != 0).all()


def test_each_pass_of_batches_holds_every_window_once_in_a_new_order() -> None:
    windows = Windows(ids_NT=torch.arange(12).view(6, 2), document_N=np.arange(6), bytes_per_token=1.0)
    rows = torch.cat(batches(windows, 3, 4, seed=0))[:, 0] // 2
    assert rows[:6].sort().values.tolist() == rows[6:].sort().values.tolist() == list(range(6))
    assert rows[:6].tolist() != rows[6:].tolist()
    assert [len(batch) for batch in batches(windows, 4, 5, seed=0)] == [4] * 5


STORE = Windows(
    ids_NT=torch.arange(20).view(10, 2),
    document_N=np.arange(10),
    bytes_per_token=1.0,
    segments_NT=torch.arange(20).view(10, 2) // 3,
)


def test_batches_read_one_by_one_are_the_same_in_any_order() -> None:
    lazy, whole = Batches(STORE, 4, 6, seed=5), batches(STORE, 4, 6, seed=5)
    assert len(lazy) == 6
    for step in (5, 0, 3, 1, 4, 2):
        assert torch.equal(lazy[step].ids_BT, whole[step])
        assert lazy[step].segments_BT is None
    assert [batch.ids_BT.tolist() for batch in lazy[4:]] == [ids.tolist() for ids in whole[4:]]
    assert torch.equal(lazy[-1].ids_BT, whole[-1])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_the_batches_of_one_process(world_size: int) -> None:
    shards = [
        Batches(STORE, 4, 6, seed=5, ranks=Ranks(rank=rank, world_size=world_size), masks_documents=True)
        for rank in range(world_size)
    ]
    for step, alone in enumerate(Batches(STORE, 4, 6, seed=5, masks_documents=True)):
        found = [row for shard in shards for row in shard[step].ids_BT.tolist()]
        assert sorted(found) == sorted(alone.ids_BT.tolist())
        assert {len(shard[step].ids_BT) for shard in shards} <= {4 // world_size, -(-4 // world_size)}
        for shard in shards:
            segments_BT = shard[step].segments_BT
            assert segments_BT is not None and torch.equal(segments_BT, shard[step].ids_BT // 3)


def test_more_ranks_than_windows_of_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="4 windows for 5 ranks"):
        Batches(STORE, 4, 6, seed=5, ranks=Ranks(rank=0, world_size=5))


@pytest.mark.parametrize("num_windows", [1000, 40])
def test_segments_change_exactly_where_documents_do(num_windows: int, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = MUCH if num_windows == 40 else DOCUMENTS
    windows = cut_windows(documents, tokenizer, length=32, num_windows=num_windows, seed=0)
    assert windows.segments_NT is not None
    begins_NT = windows.segments_NT[:, 1:] != windows.segments_NT[:, :-1]
    assert torch.equal(begins_NT, windows.ids_NT[:, 1:] == 0)  # token 0 stands before each document
    assert num_windows == 40 or begins_NT.any()
