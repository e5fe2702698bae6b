"""Blockwise local distillation, decoupled: every candidate of a layer learns from one pass of the parent.

For a layer of the parent with input x, state m between mixer and ffn, and output y (Puzzle, arXiv 2411.19146,
section 3 and appendix F.1):

    a mixer candidate c:    ŷ = m' + ffn(m'),  m' = x + c(x)    with the parent's ffn, frozen
    an ffn candidate c:     ŷ = m + c(m)                        behind the parent's mixer

    loss = mean (ŷ − y)² / mean y²

No gradient crosses a layer, so the candidates of a layer are independent of each other and of all other
layers. x, m and y are computed once per layer and feed all of them; y is the next layer's x, so all layers
together cost one forward pass of the parent.

Shapes: N windows, B windows of a batch, T tokens, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.files import new_file
from blockwright.library import Entry
from blockwright.model.child import layer_with, part_weights
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp
from blockwright.tensors import writing_tensors
from blockwright.train.initialise import channel_contribution, ffn_weights, mixer_weights
from blockwright.train.schedule import warm_up_then_cosine

_TEACHER_WINDOWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BldSettings:
    """How candidates are trained."""

    batch_windows: int
    num_steps: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerData:
    """One layer of the parent on all windows: what enters, what is between mixer and ffn, what leaves."""

    x_NTD: Tensor
    mid_NTD: Tensor
    y_NTD: Tensor


def needs_training(parent: Model, candidate: Candidate) -> bool:
    """Whether a candidate has weights of its own: it is not nothing, nor what the parent has there."""
    own = getattr(parent.layers[candidate.layer], candidate.part)
    return not isinstance(candidate.variant, NoOp) and candidate.variant != own


def train_library(
    model: PreTrainedModel,
    parent: Model,
    candidates: Sequence[Candidate],
    training_NT: Tensor,
    held_out_NT: Tensor,
    settings: BldSettings,
    folder: Path,
    finished: Sequence[Entry],
    on_step: Callable[[int], None] = lambda layer: None,
) -> Iterator[list[Entry]]:
    """Trains every candidate that needs it, layer by layer, and writes each to its file.

    Args:
        model: the parent, frozen; its weights are left as they are.
        parent: its spec.
        candidates: all candidates; those that need no training are passed over.
        training_NT, held_out_NT: token windows.
        settings: how to train.
        folder: where the candidates' files go.
        finished: entries of an earlier run; layers whose candidates are all among them are not trained again.
        on_step: called with the layer after each training step of all its candidates.

    Yields:
        The entries of one layer, as soon as its files are written.
    """
    model.requires_grad_(False)
    walk = Walk(model)
    training, held_out = walk.embed(training_NT), walk.embed(held_out_NT)
    for layer in range(len(parent.layers)):
        wanted = [c for c in candidates if c.layer == layer and needs_training(parent, c)]
        done = [entry for entry in finished if entry.candidate in wanted]
        training_data, contribution = layer_data(walk, layer, training)
        held_out_data, _ = layer_data(walk, layer, held_out)
        if len(done) == len(wanted):
            yield done
        else:
            students = [build_candidate(model, parent, c, contribution) for c in wanted]
            before = [errors(walk, c, s, held_out_data) for c, s in zip(wanted, students, strict=True)]
            train_candidates(walk, wanted, students, training_data, settings, partial(on_step, layer))
            after = [errors(walk, c, s, held_out_data) for c, s in zip(wanted, students, strict=True)]
            yield [
                _write_candidate(folder, candidate, student, initial, final)
                for candidate, student, initial, final in zip(wanted, students, before, after, strict=True)
            ]
        training, held_out = training_data.y_NTD, held_out_data.y_NTD


@torch.no_grad()
def layer_data(walk: Walk, layer: int, x_NTD: Tensor) -> tuple[LayerData, Tensor]:
    """Runs one layer of the parent on all windows.

    Returns:
        The hidden states, and the contribution of each channel of the layer's ffn to its output.
    """
    down = walk.layers[layer].get_submodule("mlp.down_proj")
    down_DW = down.get_parameter("weight")
    contributions: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor]) -> None:
        share = len(inputs[0]) / len(x_NTD)  # the last batch may be smaller
        contributions.append(share * channel_contribution(inputs[0].flatten(0, 1), down_DW))

    hook = down.register_forward_pre_hook(record)
    try:
        mids = [walk.mix(layer, x_BTD) for x_BTD in x_NTD.split(_TEACHER_WINDOWS)]
        ys = [walk.feed(layer, mid_BTD) for mid_BTD in mids]
    finally:
        hook.remove()
    data = LayerData(x_NTD=x_NTD, mid_NTD=torch.cat(mids), y_NTD=torch.cat(ys))
    return data, torch.stack(contributions).sum(dim=0)


def build_candidate(model: PreTrainedModel, parent: Model, candidate: Candidate, contribution: Tensor) -> nn.Module:
    """The parent's layer with the untrained candidate in it: the candidate can be trained, the rest is frozen."""
    own = model.model.layers[candidate.layer]
    weights = first_weights(parent, own.state_dict(), candidate, contribution)
    layer = layer_with(model, parent, candidate, weights)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in weights)
    return layer


def first_weights(
    parent: Model, layer: dict[str, Tensor], candidate: Candidate, contribution: Tensor
) -> dict[str, Tensor]:
    """The candidate's weights before training, from the parent's layer."""
    match candidate.variant:
        case Attention() | LinearMixer() as mixer:
            return mixer_weights(parent, layer, mixer)
        case GatedFFN() | LinearFFN() as ffn:
            return ffn_weights(layer, ffn, contribution)
        case NoOp():
            return {}


def train_candidates(
    walk: Walk,
    candidates: Sequence[Candidate],
    students: Sequence[nn.Module],
    data: LayerData,
    settings: BldSettings,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Trains all candidates of one layer on the same batches.

    One optimizer holds all of them: their parameters are disjoint and AdamW treats each number by itself, so this
    equals one optimizer each.
    """
    parameters = [p for student in students for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(data.x_NTD), generator=generator).repeat(
        -(-settings.batch_windows * settings.num_steps // len(data.x_NTD))
    )
    for step in range(settings.num_steps):
        rows = order[step * settings.batch_windows :][: settings.batch_windows]
        batch = LayerData(x_NTD=data.x_NTD[rows], mid_NTD=data.mid_NTD[rows], y_NTD=data.y_NTD[rows])
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm_up_then_cosine(step, settings.num_steps)
        for candidate, student in zip(candidates, students, strict=True):
            output_BTD = run_candidate(walk, candidate, student, batch)
            normalised_mse(output_BTD, batch.y_NTD).backward()
        optimizer.step()
        optimizer.zero_grad()
        on_step()


def run_candidate(walk: Walk, candidate: Candidate, student: nn.Module, data: LayerData) -> Tensor:
    """The layer's output with the candidate in it, ŷ_NTD."""
    if candidate.part == "mixer":
        return walk.layer(candidate.layer, data.x_NTD, student)
    return walk.feed(candidate.layer, data.mid_NTD, student)


def normalised_mse(output: Tensor, target: Tensor, zero: Tensor | float = 0.0) -> Tensor:
    """MSE(output, target) / MSE(zero, target), where `zero` is what counts as no answer at all."""
    return (output - target).square().mean() / (target - zero).square().mean()


@torch.no_grad()
def errors(walk: Walk, candidate: Candidate, student: nn.Module, data: LayerData) -> tuple[float, float]:
    """The normalised mean squared errors of the layer's output and of what the layer adds to its input."""
    output_NTD = run_candidate(walk, candidate, student, data)
    nmse = normalised_mse(output_NTD, data.y_NTD)
    delta_nmse = normalised_mse(output_NTD, data.y_NTD, zero=data.x_NTD)
    return nmse.item(), delta_nmse.item()


def _write_candidate(
    folder: Path, candidate: Candidate, student: nn.Module, initial: tuple[float, float], final: tuple[float, float]
) -> Entry:
    name = f"{candidate.name}.safetensors"
    weights = {name: tensor.contiguous() for name, tensor in part_weights(student, candidate.part).items()}
    with new_file(folder / name) as temporary, writing_tensors(folder / name):
        save_file(weights, temporary)
    return Entry(
        candidate=candidate,
        file=name,
        initial_nmse=initial[0],
        nmse=final[0],
        initial_delta_nmse=initial[1],
        delta_nmse=final[1],
    )
