"""Documents into windows of tokens, spread over all of the text, by the seed alone.

Shapes: N windows, B windows of a batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.train.ranks import Ranks
from blockwright.train.text import Document

_CHARS_PER_TOKEN = 16
"""More than a token has on average in any text, so that windows this far apart do not overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one training step reads."""

    ids_BT: Tensor
    segments_BT: Tensor | None = None
    """Numbers the documents within each window, for `Walk`; None where a window counts as one document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Token windows of one length, N of them with T tokens each."""

    ids_NT: Tensor
    document_N: np.ndarray
    """Which document each window begins in, by its place among those given, so that the same document has the same
    number whatever the seed: windows of one document are not independent."""
    bytes_per_token: float
    """UTF-8 bytes of the windows' text per token, to turn nats per token into bits per byte."""
    segments_NT: Tensor | None = None
    """Which document each token belongs to."""

    @property
    def num_windows(self) -> int:
        """N."""
        return len(self.ids_NT)

    def read(self, rows_B: Tensor) -> Batch:
        """Some of them, with their documents where those are known."""
        return Batch(
            ids_BT=self.ids_NT[rows_B], segments_BT=None if self.segments_NT is None else self.segments_NT[rows_B]
        )


class WindowStore(Protocol):
    """Windows in memory or in a file."""

    @property
    def num_windows(self) -> int: ...

    def read(self, rows_B: Tensor) -> Batch: ...


class Batches(Sequence[Batch]):
    """The batches of a training, one per step, each read when it is asked for.

    The seed alone fixes the global batches; a rank gets its rows of each. They pass through all windows as often as
    needed, each pass shuffled anew.

    Args:
        store: the windows.
        batch_windows: windows of a global batch.
        num_steps: how many batches.
        seed: fixes the order.
        ranks: who asks.
        masks_documents: whether batches say where documents begin.

    Raises:
        InputError: a rank would get no window.
    """

    def __init__(
        self,
        store: WindowStore,
        batch_windows: int,
        num_steps: int,
        seed: int,
        *,
        ranks: Ranks | None = None,
        masks_documents: bool = False,
    ) -> None:
        self._store, self._masks_documents = store, masks_documents
        self._ranks = Ranks.alone() if ranks is None else ranks
        if batch_windows < self._ranks.world_size:
            raise InputError(
                "--batch",
                got=f"{batch_windows} windows for {self._ranks.world_size} ranks",
                expected="at least one window for each",
                remedy="Take larger batches, or fewer ranks.",
            )
        self._rows = _order(store.num_windows, batch_windows * num_steps, seed).split(batch_windows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[step] for step in range(*index.indices(len(self)))]
        batch = self._store.read(self._ranks.shard(self._rows[index]))
        return batch if self._masks_documents else Batch(ids_BT=batch.ids_BT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """A run of tokens: whose they are, and which characters of it each stands for (none for a separator)."""

    ids: np.ndarray
    document: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def cut(self, start: int, length: int) -> "_Tokens":
        part = slice(start, start + length)
        return _Tokens(ids=self.ids[part], document=self.document[part], start=self.start[part], end=self.end[part])


def cut_windows(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, *, length: int, num_windows: int, seed: int
) -> Windows:
    """Shuffles the documents, each behind a separator, and cuts windows at even distances from all of them.

    Little text is packed end to end and cut into windows that touch. From much text only what the windows need is
    tokenised: each begins at the beginning of a line, and goes on into the next document where its own ends.

    Args:
        documents: the text.
        tokenizer: the parent's.
        length: tokens of a window.
        num_windows: how many are wanted; fewer come back where the text is shorter.
        seed: fixes the order of the documents and the place of the first window.

    Raises:
        InputError: the text is shorter than one window.
    """
    if not documents:
        raise too_short(0, length)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(documents))
    shuffled = [documents[int(index)] for index in order]
    phase = generator.random()
    num_chars = sum(len(document.text) for document in shuffled)
    if num_chars > num_windows * length * _CHARS_PER_TOKEN:
        places = ((np.arange(num_windows) + phase) * num_chars / num_windows).astype(int)
        runs = [_read_on(shuffled, *place, tokenizer, length) for place in _find(shuffled, places)]
    else:
        whole = _join([_encode(shuffled, index, 0, None, tokenizer) for index in range(len(shuffled))])
        count = len(whole.ids) // length
        chosen = ((np.arange(min(num_windows, count)) + phase) * count / max(1, min(num_windows, count))).astype(int)
        runs = [whole.cut(index * length, length) for index in chosen]
    windows = [run.cut(0, length) for run in runs if len(run.ids) >= length]
    if not windows:
        raise too_short(num_chars, length)
    num_bytes = sum(_num_bytes(shuffled, window) for window in windows)
    return Windows(
        ids_NT=torch.from_numpy(np.stack([window.ids for window in windows])),
        document_N=order[[window.document[0] for window in windows]],
        bytes_per_token=num_bytes / (len(windows) * length),
        segments_NT=torch.from_numpy(order[np.stack([window.document for window in windows])].astype(np.int32)),
    )


def batches(windows: Windows, batch_windows: int, num_batches: int, seed: int) -> list[Tensor]:
    """So many batches of windows, passing through the text as often as needed, each pass shuffled anew."""
    rows = _order(windows.num_windows, batch_windows * num_batches, seed)
    return list(windows.ids_NT[rows].split(batch_windows))


def separator_of(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What stands before a document: the token that begins one; failing that the one that ends one; or nothing."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return [token]
    return []


def too_short(num_chars: int, length: int) -> InputError:
    """The error for text that makes no window."""
    return InputError(
        "text",
        got=f"{num_chars} characters",
        expected=f"at least one window of {length} tokens in each part",
        remedy="Give more text, or ask for a shorter window.",
    )


def _order(num_windows: int, wanted: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    num_passes = -(-wanted // num_windows)
    return torch.cat([torch.randperm(num_windows, generator=generator) for _ in range(num_passes)])[:wanted]


def _find(documents: Sequence[Document], places: np.ndarray) -> list[tuple[int, int]]:
    """For places in the documents end to end: which document, and the beginning of the next line in it."""
    ends = np.cumsum([len(document.text) for document in documents])
    found: list[tuple[int, int]] = []
    for place in places:
        index = int(np.searchsorted(ends, place, side="right"))
        text = documents[index].text
        char = int(place) - int(ends[index]) + len(text)
        newline = text.find("\n", char)
        found.append((index, newline + 1 if newline >= 0 else char))
    return found


def _read_on(
    documents: Sequence[Document], index: int, char: int, tokenizer: PreTrainedTokenizerFast, num_tokens: int
) -> _Tokens:
    """At least so many tokens from a place on, round the end of the text, or those of all documents once."""
    pieces = [_encode(documents, index, char, num_tokens, tokenizer)]
    for offset in range(1, len(documents)):
        if sum(len(piece.ids) for piece in pieces) >= num_tokens:
            break
        pieces.append(_encode(documents, (index + offset) % len(documents), 0, num_tokens, tokenizer))
    return _join(pieces)


def _encode(
    documents: Sequence[Document], index: int, char: int, num_tokens: int | None, tokenizer: PreTrainedTokenizerFast
) -> _Tokens:
    """The tokens of a document from a character on; hardly more than `num_tokens`, if that is given."""
    text = documents[index].text[char : None if num_tokens is None else char + num_tokens * _CHARS_PER_TOKEN]
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    separator = [] if char else separator_of(tokenizer)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + char
    blank = np.full(len(separator), char)
    return _Tokens(
        ids=np.array([*separator, *encoding.ids], dtype=np.int64),
        document=np.full(len(separator) + len(offsets), index),
        start=np.concatenate([blank, offsets[:, 0]]),
        end=np.concatenate([blank, offsets[:, 1]]),
    )


def _join(pieces: Sequence[_Tokens]) -> _Tokens:
    return _Tokens(
        ids=np.concatenate([piece.ids for piece in pieces]),
        document=np.concatenate([piece.document for piece in pieces]),
        start=np.concatenate([piece.start for piece in pieces]),
        end=np.concatenate([piece.end for piece in pieces]),
    )


def _num_bytes(documents: Sequence[Document], window: _Tokens) -> int:
    """UTF-8 bytes of what a window's tokens stand for."""
    total = 0
    for index in np.unique(window.document):
        own = window.document == index
        total += len(documents[index].text[window.start[own].min() : window.end[own].max()].encode())
    return total
