"""What several stages read: checkpoints, their digests, and windows of text."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.files import digest_of, digest_of_files
from blockwright.model.child import load_child, spec_of_child
from blockwright.model.parent import Parent, load_model, load_tokenizer, open_parent
from blockwright.pipeline.console import progress
from blockwright.spec import Model
from blockwright.statistics import LEAST_VALUES
from blockwright.train.ranks import Ranks
from blockwright.train.sources import digest_of_sources
from blockwright.train.text import Document, digest, is_held_out, no_text, split, stream_documents
from blockwright.train.tokens import TokenWindows, key_of_tokens, token_file
from blockwright.train.windows import Batches, Windows, WindowStore, cut_windows, too_short

MOST_TOKENS_IN_MEMORY = 2**24
"""More are tokenised into a file: 16 Mi tokens and their documents take 200 MB."""
_MOST_CHARS_IN_MEMORY = 2**28
"""What is read of a source by stages that need but a sample; enough for the tokens above, whatever the language."""
_WORSE_THAN_CHANCE_NATS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The text of sources, parted."""

    sources: str
    training: list[Document]
    held_out: list[Document]
    digest: str
    """Of both parts, and of all of the sources where they are larger than what is held here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWindows:
    """What a stage trains on, in memory or in a file."""

    store: WindowStore
    masks_documents: bool
    digest: str
    """Of the text and of the tokens that were made of it; belongs into whatever is trained on them."""

    def shortage(self, num_tokens: int) -> str | None:
        """What to tell where there are fewer windows than asked for; None where there are enough."""
        length = self.store.read(torch.zeros(1, dtype=torch.long)).ids_BT.shape[1]
        found = self.store.num_windows * length
        if found + length > num_tokens:
            return None
        times = f"{num_tokens / found:.1f} times"
        return f"text      gives {found:,} of {num_tokens:,} tokens: training passes through it {times}"

    def batches(self, batch_windows: int, num_steps: int, seed: int, ranks: Ranks | None = None) -> Batches:
        """The batches of all steps, or one rank's part of each; see `Batches`."""
        return Batches(self.store, batch_windows, num_steps, seed, ranks=ranks, masks_documents=self.masks_documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A parent's or a child's folder."""

    folder: Path
    spec: Model
    parent: Parent | None
    """None where it is a child."""

    @property
    def digest(self) -> str:
        """The digest of its configuration, weights and tokenizer."""
        return checkpoint_digest(self.folder)


def open_checkpoint(name: str) -> Checkpoint:
    """Opens a child that Blockwright wrote, or a parent.

    Raises:
        InputError: it is neither.
    """
    spec = spec_of_child(Path(name))
    if spec is not None:
        return Checkpoint(folder=Path(name), spec=spec, parent=None)
    parent = open_parent(name)
    return Checkpoint(folder=parent.folder, spec=parent.spec, parent=parent)


def load_checkpoint(checkpoint: Checkpoint) -> PreTrainedModel:
    """Loads the weights in fp32.

    Raises:
        InputError: they are missing, broken or not those of the configuration.
    """
    if checkpoint.parent is None:
        return load_child(checkpoint.folder, checkpoint.spec)
    return load_model(checkpoint.parent)


def read_text(sources: str, *, most_chars: int = _MOST_CHARS_IN_MEMORY) -> Text:
    """Reads sources, as far as they fit into memory, and parts them into what may be trained on and what may not.

    Raises:
        InputError: a source is not there or broken, or holds too little to be parted.
    """
    documents: list[Document] = []
    num_chars, is_whole = 0, True
    for document in stream_documents(sources):
        if num_chars >= most_chars:
            is_whole = False
            break
        documents.append(document)
        num_chars += len(document.text)
    if not documents:
        raise no_text(sources)
    training, held_out = split(documents)
    digests = [digest(training), digest(held_out), *([] if is_whole else [digest_of_sources(sources)])]
    return Text(sources=sources, training=training, held_out=held_out, digest=digest_of(digests))


def checkpoint_digest(folder: Path) -> str:
    """The digest of a checkpoint's configuration, weights and tokenizer."""
    patterns = ("*.json", "*.safetensors", "*.py", "*.model", "*.txt")
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    return digest_of_files(files)


def windows_of(parent: Parent, documents: list[Document], *, length: int, num_tokens: int, seed: int) -> Windows:
    """Windows of at most `num_tokens` in all.

    Raises:
        InputError: the text is shorter than one window, or the window longer than the parent's context.
    """
    _check_length(parent, length)
    num_windows = max(1, num_tokens // length)
    return cut_windows(documents, load_tokenizer(parent), length=length, num_windows=num_windows, seed=seed)


def training_windows(
    parent: Parent,
    text: Text,
    *,
    length: int,
    num_tokens: int,
    seed: int,
    folder: Path,
    masks_documents: bool = False,
) -> TrainingWindows:
    """Windows to train on: in memory as `windows_of` cuts them, or those of a file where they are too many for that.

    Args:
        parent: whose tokenizer.
        text: from `read_text`.
        length: tokens of a window.
        num_tokens: at most so many in all.
        seed: fixes where windows in memory are cut; those of a file are the same for every seed.
        folder: where a file is made, or was made before.
        masks_documents: whether a token may see its own document only.

    Raises:
        InputError: as `windows_of`; or the text, or the file, is broken.
    """
    if num_tokens <= MOST_TOKENS_IN_MEMORY:
        windows = windows_of(parent, text.training, length=length, num_tokens=num_tokens, seed=seed)
        tokens = hashlib.sha256(windows.ids_NT.numpy().tobytes()).hexdigest()
        found = digest_of({"text": text.digest, "tokens": tokens})
        return TrainingWindows(store=windows, masks_documents=masks_documents, digest=found)
    _check_length(parent, length)
    tokenizer = load_tokenizer(parent)
    key = key_of_tokens(text.digest, tokenizer, num_tokens)
    with progress("tokenise", num_tokens) as advance:
        file = token_file(
            _training_part(text.sources),
            tokenizer,
            folder,
            key=key,
            num_tokens=num_tokens,
            on_tokens=lambda done: advance(to=min(done, num_tokens)),
        )
    num_windows = min(file.index.num_tokens, num_tokens) // length
    if not num_windows:
        raise too_short(file.index.num_bytes, length)
    return TrainingWindows(
        store=TokenWindows(file=file, length=length, num_windows=num_windows),
        masks_documents=masks_documents,
        digest=digest_of({"text": text.digest, "tokens": file.index.digest}),
    )


def windows_to_judge_by(
    parent: Parent, documents: list[Document], *, length: int, num_tokens: int, seed: int
) -> Windows:
    """`windows_of`, and enough of them for an interval.

    Raises:
        InputError: as there, or there is but one window.
    """
    windows = windows_of(parent, documents, length=length, num_tokens=num_tokens, seed=seed)
    if len(windows.ids_NT) < LEAST_VALUES:
        raise InputError(
            "text and tokens",
            got=f"one window of {length} tokens to judge by",
            expected=f"at least {LEAST_VALUES} in each part, for an interval",
            remedy="Give more text or tokens, or a shorter window.",
        )
    return windows


@torch.no_grad()
def check_text_suits(model: PreTrainedModel, windows: WindowStore) -> None:
    """Refuses a parent to which the text is worse than noise.

    Raises:
        InputError: the parent finds the text less likely than drawing tokens blindly would make it.
    """
    ids_BT = windows.read(torch.arange(min(2, windows.num_windows))).ids_BT
    logits = model(ids_BT, use_cache=False).logits[:, :-1]
    nats = cross_entropy(logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten()).item()
    chance = math.log(model.config.vocab_size)
    if not nats < chance + _WORSE_THAN_CHANCE_NATS:
        raise InputError(
            "parent and tokenizer",
            got=f"{nats:.2f} nats per token on this text",
            expected=f"less than {chance:.2f}, which drawing tokens blindly gives",
            remedy="The tokenizer is another model's, or the weights are broken: get both from one checkpoint.",
        )


def _check_length(parent: Parent, length: int) -> None:
    if length > parent.spec.max_positions:
        raise InputError(
            "window_tokens",
            got=length,
            expected=f"at most the parent's context of {parent.spec.max_positions}",
            remedy="Shorten the window.",
        )


def _training_part(sources: str) -> Iterator[Document]:
    return (document for document in stream_documents(sources) if not is_held_out(document))
