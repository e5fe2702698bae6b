"""Global knowledge distillation: the whole child learns from the whole parent (Puzzle, section 4.3 and appendix F.3).

    loss = mean_n KL(parent ‖ child)  +  Σ_l mean_n (1 − cos(h_child^l, h_parent^l))

over tokens n and the outputs h^l of the layers. There is no language-modelling term: it makes the child worse.

Shapes: B windows of a batch, T tokens, D hidden size, N = B·T.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.files import new_file
from blockwright.model.walk import Walk
from blockwright.tensors import writing_tensors
from blockwright.train.chunked_kl import chunked_kl
from blockwright.train.schedule import warm_up_then_cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class GkdSettings:
    """How the child is distilled."""

    learning_rate: float
    cosine_weight: float
    checkpoint_steps: int
    """A kill loses at most so many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GkdStep:
    """What one step saw."""

    step: int
    kl: float
    cosine: float


def distill(
    child: PreTrainedModel,
    parent: PreTrainedModel,
    batches: Sequence[Tensor],
    settings: GkdSettings,
    checkpoint: Path,
    on_step: Callable[[GkdStep], None] = lambda step: None,
) -> list[GkdStep]:
    """Trains the child in place, from its last checkpoint where there is one.

    Args:
        child: the child; all its weights are trained.
        parent: the parent, frozen.
        batches: token windows of shape (B, T), one per step; the same ones after a kill.
        settings: how to train.
        checkpoint: a file (safetensors) to keep the state of training in; removed by the caller when done with it.
        on_step: called after each step.

    Returns:
        All steps, those before a kill included.

    Raises:
        InputError: the loss is no number any more.
    """
    parent.requires_grad_(False)
    child.requires_grad_(True).train()
    names = [name for name, _ in child.named_parameters()]
    optimizer = torch.optim.AdamW(
        child.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    history = _restore(checkpoint, child, names, optimizer)
    for step in range(len(history), len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm_up_then_cosine(step, len(batches))
        kl, cosine = distillation_loss(child, parent, batches[step])
        loss = kl + settings.cosine_weight * cosine
        if not torch.isfinite(loss):
            raise InputError(
                "distillation loss",
                got=f"{loss.item()} at step {step}",
                expected="a number",
                remedy="Lower the learning rate; the state before this step is kept.",
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(child.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append(GkdStep(step=step, kl=kl.item(), cosine=cosine.item()))
        on_step(history[-1])
        if (step + 1) % settings.checkpoint_steps == 0 and step + 1 < len(batches):
            _save(checkpoint, child, names, optimizer, history)
    child.eval()
    return history


def distillation_loss(child: PreTrainedModel, parent: PreTrainedModel, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The mean KL over tokens, and the cosine distance summed over layers, for a batch of windows."""
    student, teacher = Walk(child), Walk(parent)
    with torch.no_grad():
        y_BTD = teacher.embed(ids_BT)
    x_BTD = student.embed(ids_BT)
    cosine = x_BTD.new_zeros(())
    for layer in range(len(teacher.layers)):
        with torch.no_grad():
            y_BTD = teacher.layer(layer, y_BTD)
        x_BTD = student.layer(layer, x_BTD)
        cosine = cosine + (1 - cosine_similarity(x_BTD, y_BTD, dim=-1)).mean()
    h_ND = child.model.norm(x_BTD).flatten(0, 1)
    with torch.no_grad():
        g_ND = parent.model.norm(y_BTD).flatten(0, 1)
    return chunked_kl(h_ND, child.lm_head.weight, g_ND, parent.lm_head.weight), cosine


def _save(
    path: Path, child: PreTrainedModel, names: list[str], optimizer: torch.optim.AdamW, history: list[GkdStep]
) -> None:
    """Writes weights, optimizer and history as one file, so that no kill can leave them out of step."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in zip(names, child.parameters(), strict=True):
        state = optimizer.state[parameter]
        tensors[f"weight.{name}"] = parameter.detach()
        tensors[f"first.{name}"] = state["exp_avg"]
        tensors[f"second.{name}"] = state["exp_avg_sq"]
    losses = json.dumps([[entry.kl, entry.cosine] for entry in history])
    with new_file(path) as temporary, writing_tensors(path):
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, {"losses": losses})


def _restore(path: Path, child: PreTrainedModel, names: list[str], optimizer: torch.optim.AdamW) -> list[GkdStep]:
    if not path.exists():
        return []
    with safe_open(path, framework="pt") as state:
        losses = json.loads(state.metadata()["losses"])
        for name, parameter in zip(names, child.parameters(), strict=True):
            parameter.data.copy_(state.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(len(losses))),
                "exp_avg": state.get_tensor(f"first.{name}").clone(),
                "exp_avg_sq": state.get_tensor(f"second.{name}").clone(),
            }
    return [GkdStep(step=step, kl=kl, cosine=cosine) for step, (kl, cosine) in enumerate(losses)]
