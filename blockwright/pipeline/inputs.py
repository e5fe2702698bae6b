"""What several stages read: checkpoints, their digests, and windows of text."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.files import digest_of_files
from blockwright.model.child import load_child, spec_of_child
from blockwright.model.parent import Parent, load_model, load_tokenizer, open_parent
from blockwright.spec import Model
from blockwright.statistics import LEAST_VALUES
from blockwright.train.text import Document, digest, read_documents, split
from blockwright.train.windows import Windows, cut_windows

_WORSE_THAN_CHANCE_NATS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text source, parted."""

    training: list[Document]
    held_out: list[Document]
    digest: str


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


def read_text(source: str) -> Text:
    """Reads a source and parts it into what may be trained on and what may not."""
    documents = read_documents(source)
    training, held_out = split(documents)
    return Text(training=training, held_out=held_out, digest=digest(documents))


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
    if length > parent.spec.max_positions:
        raise InputError(
            "window_tokens",
            got=length,
            expected=f"at most the parent's context of {parent.spec.max_positions}",
            remedy="Shorten the window.",
        )
    num_windows = max(1, num_tokens // length)
    return cut_windows(documents, load_tokenizer(parent), length=length, num_windows=num_windows, seed=seed)


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
def check_text_suits(model: PreTrainedModel, windows: Windows) -> None:
    """Refuses a parent to which the text is worse than noise.

    Raises:
        InputError: the parent finds the text less likely than drawing tokens blindly would make it.
    """
    ids_BT = windows.ids_NT[:2]
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
