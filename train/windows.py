"""Documents into windows of tokens, in an order that depends on the seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.train.text import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Token windows of one length, N of them with T tokens each."""

    ids_NT: Tensor
    bytes_per_token: float
    """UTF-8 bytes of text per token, to turn nats per token into bits per byte."""


def cut_windows(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, *, length: int, num_windows: int, seed: int
) -> Windows:
    """Packs documents, in a shuffled order and each behind a separator, and cuts them into windows.

    Args:
        documents: the text.
        tokenizer: the parent's.
        length: tokens of a window.
        num_windows: how many are wanted; fewer come back where the text is shorter.
        seed: fixes the order of the documents.

    Raises:
        InputError: the text is shorter than one window.
    """
    separator = _separator(tokenizer)
    tokens: list[int] = []
    num_bytes = 0
    for index in np.random.default_rng(seed).permutation(len(documents)):
        text = documents[int(index)].text
        tokens += [*separator, *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids]
        num_bytes += len(text.encode())
        if len(tokens) >= length * num_windows:
            break
    if len(tokens) < length:
        raise InputError(
            "text",
            got=f"{len(tokens)} tokens",
            expected=f"at least one window of {length} tokens in each part",
            remedy="Give more text, or ask for a shorter window.",
        )
    count = min(num_windows, len(tokens) // length)
    ids_NT = torch.tensor(tokens[: count * length], dtype=torch.long).view(count, length)
    return Windows(ids_NT=ids_NT, bytes_per_token=num_bytes / len(tokens))


def batches(windows: Windows, batch_windows: int, num_batches: int, seed: int) -> list[Tensor]:
    """So many batches of windows, passing through the text as often as needed, each pass shuffled anew."""
    generator = torch.Generator().manual_seed(seed)
    wanted = batch_windows * num_batches
    num_passes = -(-wanted // len(windows.ids_NT))
    order = torch.cat([torch.randperm(len(windows.ids_NT), generator=generator) for _ in range(num_passes)])
    return list(windows.ids_NT[order[:wanted]].split(batch_windows))


def _separator(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What stands before a document: the token that begins one; failing that the one that ends one; or nothing."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return [token]
    return []
