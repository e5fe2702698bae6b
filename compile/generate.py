"""Writes text with an engine, piece by piece as it comes.

Shapes: B batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from blockwright.compile.engine import TOKENIZER_FILE
from blockwright.compile.sampling import Sampling, choose
from blockwright.compile.session import Decoder
from blockwright.errors import InputError

FINISHED = -1
"""Stands for a token in sequences that have ended."""


def generate_ids(
    decoder: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling
) -> Iterator[np.ndarray]:
    """Continues a batch of prompts until each has written a stop token or `max_new_tokens`.

    Yields:
        The next token of every sequence, ids_B; `FINISHED` for those that have ended.
    """
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise InputError("prompt", got="no tokens", expected="at least one token", remedy="Write a prompt.")
    sequences = decoder.start(len(prompts), longest + max_new_tokens)
    generator = np.random.default_rng(sampling.seed)
    logits_BV = sequences.prefill(prompts)
    is_finished_B = np.zeros(len(prompts), dtype=bool)
    for index in range(max_new_tokens):
        ids_B = choose(logits_BV, sampling, generator)
        is_finished_B |= np.isin(ids_B, decoder.engine.stop_ids)
        yield np.where(is_finished_B, FINISHED, ids_B)
        if is_finished_B.all() or index + 1 == max_new_tokens:
            return
        logits_BV = sequences.step(ids_B)


def generate_text(
    decoder: Decoder, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling
) -> Iterator[str]:
    """Continues one prompt and gives the new text in pieces; a piece never ends within a character."""
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
