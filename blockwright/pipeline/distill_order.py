"""How to distil, and what is refused before any work: orders that cannot be, and children of other parents."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from blockwright.errors import InputError
from blockwright.model.parent import Parent, load_tokenizer, load_tokenizer_of
from blockwright.pipeline.inputs import Checkpoint
from blockwright.train.distill import GkdSettings
from blockwright.train.losses import COMPARED_LOGITS, check_layer_map, even_layer_map, parse_losses
from blockwright.train.objective import Precision
from blockwright.train.optimizers import OptimizerName
from blockwright.train.ranks import Ranks
from blockwright.train.schedule import WARM_UP_SHARE, Schedule
from blockwright.train.teacher_cache import DEFAULT_K

_CHECKPOINT_STEPS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOrder:
    """How to distil."""

    text: str
    window_tokens: int
    tokens: int
    batch_windows: int
    learning_rate: float
    seed: int
    masks_documents: bool = False
    """Whether a token sees its own document only."""
    loss: str = "kl+cosine"
    """As `train/losses.py` reads it."""
    temperature: float = 1.0
    js_beta: float = 0.5
    layer_map: tuple[int, ...] | None = None
    parts: int = 1
    recomputes_activations: bool = False
    precision: Precision = "fp32"
    optimizer: OptimizerName = "adamw"
    schedule: Schedule = "cosine"
    warm_up_share: float = WARM_UP_SHARE
    most_gradient_norm: float = 1.0
    eval_steps: int = 0
    patience: int = 0
    teacher_logits: Literal["live", "cached"] = "live"
    top_k: int = DEFAULT_K
    cache: str | None = None
    """A folder to keep the parent's answers in; None to forget them after the stage."""
    device: str = "cpu"
    judging_tokens: int = 0
    """Held-out tokens on which the child is held against its parent before and after; 0 for none."""

    def __post_init__(self) -> None:
        self.settings  # noqa: B018 (refuses a loss that cannot be)

    @property
    def settings(self) -> GkdSettings:
        """How the training goes."""
        return GkdSettings(
            learning_rate=self.learning_rate,
            checkpoint_steps=_CHECKPOINT_STEPS,
            losses=parse_losses(self.loss, temperature=self.temperature, js_beta=self.js_beta),
            layer_map=self.layer_map,
            parts=self.parts,
            recomputes_activations=self.recomputes_activations,
            precision=self.precision,
            optimizer=self.optimizer,
            schedule=self.schedule,
            warm_up_share=self.warm_up_share,
            most_gradient_norm=self.most_gradient_norm,
            eval_steps=self.eval_steps,
            patience=self.patience,
        )


def device_of(name: str, ranks: Ranks) -> torch.device:
    """The device that an order names: of several ranks with GPUs, each has the one of its number on its machine."""
    if name == "cuda" and ranks.world_size > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def default_device(ranks: Ranks) -> str:
    """Several ranks work on GPUs where there are any."""
    return "cuda" if ranks.world_size > 1 and torch.cuda.is_available() else "cpu"


def check_pair(child: Checkpoint, teacher: Parent) -> None:
    """Refuses a child whose states or tokens are not the parent's.

    Raises:
        InputError: they are not.
    """
    mine, theirs = child.spec, teacher.spec
    if mine.hidden_size != theirs.hidden_size or len(mine.layers) > len(theirs.layers):
        raise InputError(
            "child",
            got=f"{len(mine.layers)} layers of hidden size {mine.hidden_size}",
            expected=f"at most the teacher's {len(theirs.layers)} layers, of hidden size {theirs.hidden_size}",
            remedy="Name the parent that the child was made from as --teacher.",
        )
    if mine.vocab_size != theirs.vocab_size:
        raise InputError(
            "vocabulary",
            got=f"{mine.vocab_size} tokens in the child",
            expected=f"the teacher's {theirs.vocab_size}",
            remedy="Name the parent that the child was made from as --teacher.",
        )
    own, given = load_tokenizer_of(child.folder, mine.vocab_size).get_vocab(), load_tokenizer(teacher).get_vocab()
    if own != given:
        word = next(word for word in [*own, *given] if own.get(word) != given.get(word))
        raise InputError(
            "tokenizer",
            got=f"token {word!r} with id {own.get(word)} in the child and {given.get(word)} in the teacher",
            expected="the same tokens with the same ids in both",
            remedy="Name the parent that the child was made from as --teacher.",
        )


def check_order(order: DistillOrder, settings: GkdSettings, num_child: int, num_parent: int, ranks: Ranks) -> None:
    """Refuses what cannot be done together.

    Raises:
        InputError: says what.
    """
    check_layer_map(settings.layer_map or even_layer_map(num_child, num_parent), num_child, num_parent)
    if order.parts > order.batch_windows // ranks.world_size:
        raise InputError(
            "--accumulate",
            got=order.parts,
            expected=f"at most the {order.batch_windows // ranks.world_size} windows of a batch that a rank has",
            remedy="Accumulate less, or take larger batches (--batch).",
        )
    if order.patience and not order.eval_steps:
        raise InputError(
            "--patience",
            got="no --eval-every",
            expected="how often the held-out KL is measured",
            remedy="Add --eval-every STEPS.",
        )
    if order.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            "--device", got=order.device, expected="a GPU that torch can use", remedy="Leave it out to use the CPU."
        )
    if order.device.startswith("cuda:") and ranks.world_size > 1:
        raise InputError(
            "--device",
            got=f"{order.device} for {ranks.world_size} ranks",
            expected="a GPU for each rank",
            remedy="Leave it out: each rank takes the GPU of its number on its machine.",
        )
    compared = settings.losses.among(COMPARED_LOGITS)
    if order.teacher_logits == "cached" and list(compared) != ["kl"]:
        raise InputError(
            "--teacher-logits cached",
            got=f"--loss {order.loss}",
            expected="kl as the only term that compares logits: of the others, the tokens not kept say too little",
            remedy="Use --loss kl or kl+cosine, or --teacher-logits live.",
        )
