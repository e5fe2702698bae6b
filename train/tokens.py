"""Tokens in a file: text that does not fit into memory is tokenised once, as it comes in, and read by windows.

A folder holds three files, and appears when all of them are whole:

    tokens.u32       the documents end to end, each behind its separator: uint32, little-endian
    documents.i64    where each document begins, in tokens: int64, little-endian
    index.json       what it was made of, how much there is, and the digest of the other two

Until then it is a hidden folder with progress.json, from which the work goes on after a kill.

Shapes: B windows of a batch, T tokens.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.files import digest_of, digest_of_files, read_json, write_json
from blockwright.strict import from_data, to_data
from blockwright.train.text import Document
from blockwright.train.windows import Batch, separator_of

_TOKENS, _DOCUMENTS, _INDEX, _PROGRESS = "tokens.u32", "documents.i64", "index.json", "progress.json"
_CHUNK_CHARS = 2**22
"""Text tokenised at once, on all cores; a kill loses at most so much work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIndex:
    """What is in the files."""

    key: str
    """The digest of the text, the tokenizer and the number of tokens asked for."""
    num_tokens: int = 0
    num_documents: int = 0
    num_bytes: int = 0
    """UTF-8 bytes of the text."""
    digest: str = ""
    """The digest of the other files; empty while they are being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """An opened folder; the arrays are mapped, not read. To another process of this machine it goes as its name."""

    folder: Path
    index: TokenIndex
    tokens: np.ndarray
    begins: np.ndarray

    def __reduce__(self) -> tuple[Callable[..., "TokenFile"], tuple[Path, TokenIndex]]:
        return _mapped, (self.folder, self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWindows:
    """Windows that touch, of one length, from the beginning of a file."""

    file: TokenFile
    length: int
    num_windows: int

    def read(self, rows_B: Tensor) -> Batch:
        """Some windows, and which document each token belongs to."""
        places_BT = rows_B.numpy()[:, None] * self.length + np.arange(self.length)
        segments_BT = np.searchsorted(self.file.begins, places_BT, side="right") - 1
        return Batch(
            ids_BT=torch.from_numpy(self.file.tokens[places_BT].astype(np.int64)),
            segments_BT=torch.from_numpy(segments_BT.astype(np.int32)),
        )


def key_of_tokens(text_digest: str, tokenizer: PreTrainedTokenizerFast, num_tokens: int) -> str:
    """Tells one token file from another."""
    backend = tokenizer.backend_tokenizer.to_str()
    return digest_of(
        {"text": text_digest, "tokenizer": backend, "separator": separator_of(tokenizer), "num_tokens": num_tokens}
    )


def token_file(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    place: Path,
    *,
    key: str,
    num_tokens: int,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
) -> TokenFile:
    """Opens the token file of a key, and writes it before where it is not there or not finished.

    Of several processes one writes; the others wait and open.

    Args:
        documents: the text, always the same in the same order; read no further than needed.
        tokenizer: the parent's.
        place: the folder to make it in.
        key: from `key_of_tokens`.
        num_tokens: whole documents are taken until there are so many.
        on_tokens: called now and then with the number of tokens written.

    Raises:
        InputError: the file on disk is damaged, or there is no text. What could be read of broken text is kept.
    """
    folder = place / f"tokens-{key[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / f".{folder.name}.lock"):
        if not folder.exists():
            _write(documents, tokenizer, folder, TokenIndex(key=key), num_tokens, on_tokens)
        return open_tokens(folder, key)


def open_tokens(folder: Path, key: str) -> TokenFile:
    """Opens a token file, having made sure of every byte of it.

    Raises:
        InputError: it is damaged, or not that of the key.
    """
    path = folder / _INDEX
    index = from_data(TokenIndex, read_json(path), str(path))
    files = [folder / _TOKENS, folder / _DOCUMENTS]
    sizes = [file.stat().st_size if file.exists() else -1 for file in files]
    is_sound = sizes == _sizes(index) and index.key == key and digest_of_files(files) == index.digest
    if not is_sound:
        raise InputError(
            str(folder),
            got="a token file that is damaged, or of other text",
            expected="the files that index.json describes",
            remedy="Delete the folder; the text is tokenised again.",
        )
    return _mapped(folder.resolve(), index)


def _mapped(folder: Path, index: TokenIndex) -> TokenFile:
    return TokenFile(
        folder=folder,
        index=index,
        tokens=np.memmap(folder / _TOKENS, dtype="<u4", mode="r"),
        begins=np.memmap(folder / _DOCUMENTS, dtype="<i8", mode="r"),
    )


def _write(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    index: TokenIndex,
    num_tokens: int,
    on_tokens: Callable[[int], None],
) -> None:
    unfinished = folder.with_name(f".{folder.name}")
    unfinished.mkdir(exist_ok=True)
    files = [unfinished / _TOKENS, unfinished / _DOCUMENTS]
    index = _cut_back(unfinished, index)
    backend, separator = _plain(tokenizer), separator_of(tokenizer)
    with files[0].open("ab") as tokens, files[1].open("ab") as begins:
        for chunk in _chunks(itertools.islice(documents, index.num_documents, None)):
            if index.num_tokens >= num_tokens:
                break
            encoded = backend.encode_batch_fast([document.text for document in chunk], add_special_tokens=False)
            for document, encoding in zip(chunk, encoded, strict=True):
                if index.num_tokens >= num_tokens:
                    break
                index = _append(index, document, [*separator, *encoding.ids], tokens, begins)
            tokens.flush()
            begins.flush()
            write_json(unfinished / _PROGRESS, to_data(index))
            on_tokens(index.num_tokens)
    if not index.num_tokens:
        raise InputError("text", got="no token", expected="text to train on", remedy="Give more text.")
    write_json(unfinished / _INDEX, to_data(replace(index, digest=digest_of_files(files))))
    (unfinished / _PROGRESS).unlink()
    unfinished.rename(folder)


def _cut_back(unfinished: Path, index: TokenIndex) -> TokenIndex:
    """Takes away what a kill left behind the last progress that was noted, and says what stays."""
    path = unfinished / _PROGRESS
    files = [unfinished / _TOKENS, unfinished / _DOCUMENTS]
    noted = from_data(TokenIndex, read_json(path), str(path)) if path.exists() else index
    sizes = [file.stat().st_size if file.exists() else 0 for file in files]
    if noted.key != index.key or any(has < wants for has, wants in zip(sizes, _sizes(noted), strict=True)):
        noted = index
    for file, size in zip(files, _sizes(noted), strict=True):
        file.touch()
        os.truncate(file, size)
    return noted


def _append(index: TokenIndex, document: Document, ids: list[int], tokens: BinaryIO, begins: BinaryIO) -> TokenIndex:
    tokens.write(np.array(ids, dtype="<u4").tobytes())
    begins.write(np.array([index.num_tokens], dtype="<i8").tobytes())
    return replace(
        index,
        num_tokens=index.num_tokens + len(ids),
        num_documents=index.num_documents + 1,
        num_bytes=index.num_bytes + len(document.text.encode()),
    )


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """The documents, some at once; those before one that cannot be read come before its error."""
    chunk: list[Document] = []
    num_chars = 0
    try:
        for document in documents:
            chunk.append(document)
            num_chars += len(document.text)
            if num_chars >= _CHUNK_CHARS:
                yield chunk
                chunk, num_chars = [], 0
    except InputError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _plain(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The tokenizer without the truncation and padding that its file may ask for."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def _sizes(index: TokenIndex) -> list[int]:
    return [4 * index.num_tokens, 8 * index.num_documents]
