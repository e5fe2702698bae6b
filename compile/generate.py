"""Writes text with an engine, piece by piece as it comes.

Shapes: B batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from blockwright.compile.engine import TOKENIZER_FILE
from blockwright.compile.sampling import Sampling, choose, penalised
from blockwright.errors import InputError
from blockwright.spec import Model

FINISHED = -1
"""Stands for a token in sequences that have ended."""


class Described(Protocol):
    """What every engine says of the texts it writes."""

    @property
    def model(self) -> Model: ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    @property
    def start_id(self) -> int | None: ...

    @property
    def num_positions(self) -> int: ...


class Writing(Protocol):
    """A batch of sequences being written, in whatever runtime."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray: ...

    def step(self, ids_B: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class WritingByItself(Protocol):
    """A batch of sequences whose runtime draws the tokens too."""

    def write(self, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling) -> Iterator[np.ndarray]: ...


class AnyDecoder(Protocol):
    """An engine opened for running, in whatever runtime."""

    @property
    def engine(self) -> Described: ...

    def start(self, batch: int, num_tokens: int) -> Writing: ...


def generate_ids(
    decoder: AnyDecoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling
) -> Iterator[np.ndarray]:
    """Continues a batch of prompts until each has written a stop token or `max_new_tokens`.

    Yields:
        The next token of every sequence, ids_B; `FINISHED` for those that have ended.
    """
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise InputError("prompt", got="no tokens", expected="at least one token", remedy="Write a prompt.")
    sequences = decoder.start(len(prompts), longest + max_new_tokens)
    is_finished_B = np.zeros(len(prompts), dtype=bool)
    for ids_B in write_ids(sequences, prompts, max_new_tokens, sampling):
        is_finished_B |= np.isin(ids_B, decoder.engine.stop_ids)
        yield np.where(is_finished_B, FINISHED, ids_B)
        if is_finished_B.all():
            return


def write_ids(
    sequences: Writing, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling
) -> Iterator[np.ndarray]:
    """Continues a batch of prompts by `num_tokens`, whatever these are.

    Yields:
        The next token of every sequence, ids_B; drawn by the runtime where it draws by itself, else here.
    """
    if isinstance(sequences, WritingByItself):
        yield from sequences.write(prompts, num_tokens, sampling)
        return
    generator = np.random.default_rng(sampling.seed)
    logits_BV = sequences.prefill(prompts)
    is_seen_BV = _seen(prompts, logits_BV.shape[1])
    for index in range(num_tokens):
        if sampling.repetition_penalty != 1:
            logits_BV = penalised(logits_BV, is_seen_BV, sampling)
        ids_B = choose(logits_BV, sampling, generator)
        is_seen_BV[np.arange(len(prompts)), ids_B] = True
        yield ids_B
        if index + 1 < num_tokens:
            logits_BV = sequences.step(ids_B)


def _seen(prompts: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    is_seen_BV = np.zeros((len(prompts), vocab_size), dtype=bool)
    for row, prompt in zip(is_seen_BV, prompts, strict=True):
        row[list(prompt)] = True
    return is_seen_BV


def generate_text(
    decoder: AnyDecoder,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    sampling: Sampling,
    stops: Sequence[str] = (),
) -> Iterator[str]:
    """Continues one prompt up to the first of the stop strings, and gives the new text in pieces.

    A piece never ends within a character, nor within what may become a stop string.
    """
    yield from until_stop(_pieces(decoder, tokenizer, prompt, max_new_tokens, sampling), stops)


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The text of pieces up to the first stop string; what may be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        places = [place for stop in stops if (place := held.find(stop)) >= 0]
        if places:
            held = held[: min(places)]
            break
        sure = len(held) - max((_overlap(held, stop) for stop in stops), default=0)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _pieces(
    decoder: AnyDecoder, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling
) -> Iterator[str]:
    prompt_ids = tokenizer.encode(prompt).ids
    if not prompt_ids and decoder.engine.start_id is not None:
        prompt_ids = [decoder.engine.start_id]
    stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
    for ids_B in generate_ids(decoder, [prompt_ids], max_new_tokens, sampling):
        if ids_B[0] == FINISHED:
            return
        piece = stream.step(tokenizer, int(ids_B[0]))
        if piece:
            yield piece


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of an engine.

    Raises:
        InputError: there is none, or it is broken.
    """
    try:
        return Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(
            str(folder / TOKENIZER_FILE),
            got=str(error),
            expected="a tokenizer of the tokenizers library",
            remedy="Compile the engine again.",
        ) from error
