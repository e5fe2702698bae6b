"""Candidates learn from one pass of the parent, each as if it were alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.library import Entry
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp
from blockwright.train.library import (
    BldSettings,
    build_candidate,
    errors,
    layer_data,
    needs_training,
    normalised_mse,
    train_candidates,
    train_library,
)

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]

SETTINGS = BldSettings(batch_windows=4, num_steps=12, learning_rate=3e-3, seed=0)
MIXERS = (Attention(num_kv_heads=2), Attention(num_kv_heads=1), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=48), GatedFFN(width=16), LinearFFN(), NoOp())
IDS_NT = torch.randint(0, 64, (20, 12), generator=torch.Generator().manual_seed(5))
TRAINING_NT, HELD_OUT_NT = IDS_NT[:12], IDS_NT[12:]


def _candidates(parent: Model) -> list[Candidate]:
    candidates = []
    for layer in range(len(parent.layers)):
        candidates += [Candidate(layer=layer, part="mixer", variant=variant) for variant in MIXERS]
        candidates += [Candidate(layer=layer, part="ffn", variant=variant) for variant in FFNS]
    return candidates


def _train(
    model: PreTrainedModel,
    parent: Model,
    folder: Path,
    finished: Sequence[Entry] = (),
    on_step: Callable[[int], None] = lambda layer: None,
) -> list[Entry]:
    folder.mkdir(exist_ok=True)
    candidates = _candidates(parent)
    layers = train_library(model, parent, candidates, TRAINING_NT, HELD_OUT_NT, SETTINGS, folder, finished, on_step)
    return [entry for entries in layers for entry in entries]


def _weights(entries: list[Entry], folder: Path) -> dict[str, Tensor]:
    return {f"{e.file}:{name}": tensor for e in entries for name, tensor in load_file(folder / e.file).items()}


def test_what_is_nothing_or_the_parents_own_needs_no_training(make_parent: MakeParent) -> None:
    _, parent = make_parent()
    wanted = [candidate for candidate in _candidates(parent) if needs_training(parent, candidate)]
    assert {candidate.variant for candidate in wanted} == {*MIXERS[1:3], *FFNS[1:3]}
    assert len(wanted) == 4 * 3


@torch.no_grad()
def test_layer_data_are_the_hidden_states_of_a_whole_forward(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    states = model(IDS_NT, output_hidden_states=True).hidden_states
    entered: list[Tensor] = []
    channels: list[Tensor] = []
    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.mlp.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])))
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: channels.append(inputs[0])))
    model(IDS_NT)
    for hook in hooks:
        hook.remove()
    walk, x_NTD = Walk(model), states[0]
    for index in range(len(parent.layers) - 1):
        data, contribution = layer_data(walk, index, x_NTD)
        torch.testing.assert_close(data.y_NTD, states[index + 1])
        layer = model.model.layers[index]
        torch.testing.assert_close(layer.post_attention_layernorm(data.mid_NTD), entered[index])
        naive = channels[index].abs().mean((0, 1)) * layer.mlp.down_proj.weight.square().sum(0).sqrt()
        torch.testing.assert_close(contribution, naive)
        x_NTD = data.y_NTD


def test_the_parents_own_part_makes_no_error(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    walk = Walk(model)
    data, contribution = layer_data(walk, 1, torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(6)))
    mixer, ffn = (
        Candidate(layer=1, part="mixer", variant=MIXERS[0]),
        Candidate(layer=1, part="ffn", variant=FFNS[0]),
    )
    for candidate in (mixer, ffn):
        student = build_candidate(model, parent, candidate, contribution)
        assert errors(walk, candidate, student, data) == (0, 0)


def test_errors_are_shares_of_the_output_and_of_what_the_layer_adds(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    walk = Walk(model)
    x_NTD = torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(6))
    data, contribution = layer_data(walk, 1, x_NTD)
    candidate = Candidate(layer=1, part="ffn", variant=GatedFFN(width=16))
    student = build_candidate(model, parent, candidate, contribution)
    with torch.no_grad():
        output_NTD = walk.layer(1, x_NTD, student)
    squares = (output_NTD - data.y_NTD).square().sum()
    expected = (squares / data.y_NTD.square().sum(), squares / (data.y_NTD - x_NTD).square().sum())
    assert errors(walk, candidate, student, data) == pytest.approx([value.item() for value in expected], rel=1e-4)


def test_no_answer_at_all_has_a_normalised_error_of_one() -> None:
    target = torch.randn(5, 3, generator=torch.Generator().manual_seed(7))
    assert normalised_mse(torch.zeros(5, 3), target).item() == pytest.approx(1)
    assert normalised_mse(target + 2, target, zero=target - 1).item() == pytest.approx(4)


def test_candidates_trained_together_learn_what_each_learns_alone(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    walk = Walk(model)
    data, contribution = layer_data(walk, 1, torch.randn(9, 12, 32, generator=torch.Generator().manual_seed(6)))
    wanted = [c for c in _candidates(parent) if c.layer == 1 and needs_training(parent, c)]
    together = [build_candidate(model, parent, candidate, contribution) for candidate in wanted]
    train_candidates(walk, wanted, together, data, SETTINGS)
    for candidate, student in zip(wanted, together, strict=True):
        alone = build_candidate(model, parent, candidate, contribution)
        train_candidates(walk, [candidate], [alone], data, SETTINGS)
        for name, tensor in alone.state_dict().items():
            assert torch.equal(tensor, student.state_dict()[name]), f"{candidate.name}: {name}"


def test_training_lowers_every_candidates_error_and_leaves_the_parent_alone(
    make_parent: MakeParent, tmp_path: Path
) -> None:
    model, parent = make_parent()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    entries = _train(model, parent, tmp_path)
    assert len(entries) == 12
    for entry in entries:
        assert entry.nmse < entry.initial_nmse
        assert entry.delta_nmse < entry.initial_delta_nmse
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_finished_layers_are_not_trained_again_and_change_nothing(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    entries = _train(model, parent, whole)
    steps: list[int] = []

    def stop_in_layer_1(layer: int) -> None:
        if layer == 1:
            raise KeyboardInterrupt

    resumed.mkdir()
    finished: list[Entry] = []
    layers = train_library(
        model, parent, _candidates(parent), TRAINING_NT, HELD_OUT_NT, SETTINGS, resumed, [], stop_in_layer_1
    )
    with pytest.raises(KeyboardInterrupt):
        for layer_entries in layers:
            finished += layer_entries
    assert {entry.candidate.layer for entry in finished} == {0}
    assert _train(model, parent, resumed, finished, steps.append) == entries
    assert steps == [1] * SETTINGS.num_steps + [2] * SETTINGS.num_steps
    expected = _weights(entries, whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in _weights(entries, resumed).items())


def test_a_wider_space_trains_the_layers_that_lack_a_candidate(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    entries = _train(model, parent, tmp_path)
    without_one = [e for e in entries if e.candidate != replace(entries[4].candidate, layer=1)]
    steps: list[int] = []
    assert _train(model, parent, tmp_path, without_one, steps.append) == entries
    assert set(steps) == {entries[4].candidate.layer}
