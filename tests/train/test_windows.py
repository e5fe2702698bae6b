"""Windows hold the documents' tokens, each behind a separator, and batches pass through all of them."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.train.text import Document
from blockwright.train.windows import Windows, batches, cut_windows

DOCUMENTS = [Document(name=str(index), text=f"the cat sat {index} " * 5) for index in range(12)]


@pytest.fixture
def tokenizer(small_parent: Path) -> PreTrainedTokenizerFast:
    """Byte-level, with token 0 as separator."""
    return PreTrainedTokenizerFast.from_pretrained(small_parent)


def test_windows_are_the_shuffled_documents_end_to_end(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=1000, seed=3)
    tokens = windows.ids_NT.flatten().tolist()
    starts = [index for index, token in enumerate(tokens) if token == 0]
    assert starts[0] == 0
    assert len(starts) == len(DOCUMENTS)
    texts = [tokenizer.decode(tokens[a + 1 : b]) for a, b in itertools.pairwise(starts)]
    assert len(set(texts)) == len(texts)
    assert set(texts) <= {document.text for document in DOCUMENTS}
    assert texts != [document.text for document in DOCUMENTS][: len(texts)]


def test_bytes_per_token_counts_separators_too(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=1000, seed=3)
    encoded = [tokenizer.encode(document.text, add_special_tokens=False) for document in DOCUMENTS]
    num_tokens = sum(len(ids) + 1 for ids in encoded)
    assert windows.bytes_per_token == sum(len(document.text) for document in DOCUMENTS) / num_tokens
    assert windows.ids_NT.shape == (num_tokens // 16, 16)


def test_no_more_windows_come_than_were_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    few = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=3, seed=3)
    many = cut_windows(DOCUMENTS, tokenizer, length=16, num_windows=6, seed=3)
    assert few.ids_NT.shape == (3, 16)
    assert torch.equal(few.ids_NT, many.ids_NT[:3])


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
    windows = Windows(ids_NT=torch.arange(12).view(6, 2), bytes_per_token=1.0)
    rows = torch.cat(batches(windows, 3, 4, seed=0))[:, 0] // 2
    assert rows[:6].sort().values.tolist() == rows[6:].sort().values.tolist() == list(range(6))
    assert rows[:6].tolist() != rows[6:].tolist()
    assert [len(batch) for batch in batches(windows, 4, 5, seed=0)] == [4] * 5
