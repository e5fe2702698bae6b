"""One student of blockwise local distillation: its layer, its optimisers, its curve, and its state on disk.

Every student has optimisers of its own and goes through all batches by itself, so whom it shares the parent's pass
with changes nothing. Its state is one file, whole or not there; students of one group may be at different steps.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from blockwright.files import new_file
from blockwright.library import Kept
from blockwright.model.walk import Walk
from blockwright.tensors import opened_tensors, writing_tensors
from blockwright.train.bld import (
    BldSettings,
    LayerBatch,
    Trainee,
    normalised,
    precision_of,
    run_trainee,
    squared_error,
)
from blockwright.train.muon import Muon
from blockwright.train.schedule import warm_up_then_cosine

_REMEDY = "Delete the file, and this one is trained anew."


class Errors(NamedTuple):
    """Normalised errors; see `train/bld.py`."""

    output: float
    """Of the layer's output on held-out text."""
    delta: float
    """On held-out text, of what the layer adds to its input."""
    reserved: float
    """Of the output on training text that nothing learns from: this one says which weights are kept."""


class Student:
    """What learns, and how far it is.

    Args:
        trainee: what it is.
        layer: the parent's layer with it in place; what is to learn wants a gradient.
        settings: how to train.
        num_steps: in all.
    """

    def __init__(self, trainee: Trainee, layer: nn.Module, settings: BldSettings, num_steps: int) -> None:
        self.trainee = trainee
        self.layer = layer
        self.settings = settings
        self.step = 0
        """Steps that its weights have seen."""
        self.stopped_at: int | None = None
        """The batch at which its loss was no number, where it had to stop."""
        self.initial: Errors | None = None
        """Before training."""
        self.trained: Errors | None = None
        """After it; None where nothing was learnt, or what was gives no numbers."""
        self.curve_S2 = torch.full((num_steps, 2), math.nan)
        """What each step saw: output and delta."""
        self._optimizers = optimizers_of(settings, list(self._weights().values()))

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return len(self.curve_S2)

    @property
    def kept(self) -> Kept:
        """Whose weights it has: what training made of them, or those it began with."""
        return "trained" if self.step > 0 else "initial"

    @property
    def is_learning(self) -> bool:
        """Whether there are steps left."""
        return self.stopped_at is None and self.step < self.num_steps

    def learn(self, walk: Walk, seen: LayerBatch) -> bool:
        """Takes one step; where the loss is no number, it takes none and says so.

        Returns:
            Whether the step was taken.
        """
        with precision_of(self.settings, seen.x_BTD.device):
            output_BTD = run_trainee(walk, self.trainee, self.layer, seen)
        error_BT = squared_error(output_BTD, seen)
        loss = normalised(error_BT, seen, self.settings.loss, self.settings.is_per_token)
        if not torch.isfinite(loss):
            return False
        loss.backward()
        rate = self.settings.learning_rate * warm_up_then_cosine(self.step, self.num_steps)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        for column, name in enumerate(("output", "delta")):
            self.curve_S2[self.step, column] = normalised(error_BT.detach(), seen, name).item()
        self.step += 1
        return True

    def weights(self) -> dict[str, Tensor]:
        """What was learnt, by the names in the layer."""
        return {name: parameter.detach().contiguous() for name, parameter in self._weights().items()}

    def save(self, path: Path) -> None:
        """Writes all that is needed to go on; not where weights are no numbers any more, so that the last good stay."""
        if not all(bool(parameter.isfinite().all()) for parameter in self._weights().values()):
            return
        tensors = {f"weight.{name}": tensor for name, tensor in self.weights().items()}
        tensors |= {f"state.{name}.{key}": value for name, key, value in self._states()}
        facts = {"step": self.step, "stopped_at": self.stopped_at, "initial": self.initial}
        metadata = {"facts": json.dumps(facts)}
        with new_file(path) as temporary, writing_tensors(path):
            save_file(
                {key: value.contiguous() for key, value in (tensors | {"curve": self.curve_S2}).items()},
                temporary,
                metadata,
            )

    def restore(self, path: Path) -> None:
        """Takes up what `save` wrote.

        Raises:
            InputError: the file is broken.
        """
        parameters = self._weights()
        with opened_tensors(path, _REMEDY) as file:
            facts = json.loads(file.metadata()["facts"])
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(file.get_tensor(f"weight.{name}"))
            keys = [key.removeprefix("state.") for key in file.keys() if key.startswith("state.")]  # noqa: SIM118
            for optimizer in self._optimizers:
                mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
                for name, parameter in parameters.items():
                    if id(parameter) in mine:
                        found = {k.removeprefix(f"{name}."): k for k in keys if k.rpartition(".")[0] == name}
                        optimizer.state[parameter] = {
                            short: file.get_tensor(f"state.{key}").to(parameter.device) for short, key in found.items()
                        }
            self.curve_S2 = file.get_tensor("curve")
        self.step, self.stopped_at = facts["step"], facts["stopped_at"]
        self.initial = None if facts["initial"] is None else Errors(*facts["initial"])

    def go_back(self, path: Path, first: dict[str, Tensor]) -> None:
        """Stops at the batch that could not be learnt, with the last state that was kept, or the first weights."""
        batch, curve_S2, initial = self.step, self.curve_S2, self.initial
        if path.exists():
            self.restore(path)
        else:
            self.reset(first)
        self.stopped_at, self.curve_S2, self.initial = batch, curve_S2, initial

    @torch.no_grad()
    def reset(self, first: dict[str, Tensor]) -> None:
        """Goes back to weights that have learnt nothing."""
        for name, parameter in self._weights().items():
            parameter.copy_(first[name])
        self.step = 0

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.layer.named_parameters() if parameter.requires_grad}

    def _states(self) -> Iterator[tuple[str, str, Tensor]]:
        for optimizer in self._optimizers:
            for name, parameter in self._weights().items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    yield name, key, value


def optimizers_of(settings: BldSettings, parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """The optimisers of one student; Muon leaves vectors to AdamW."""
    matrices = [p for p in parameters if p.ndim == 2] if settings.optimizer == "muon" else []
    others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(Muon(matrices, lr=settings.learning_rate))
    if others:
        betas = (0.9, 0.95)
        found.append(torch.optim.AdamW(others, lr=settings.learning_rate, betas=betas, weight_decay=0.0, fused=True))
    return found
