"""Candidates learn from one pass of the parent, each as if it were alone, whatever the groups."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.model.child import part_weights
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Block, Candidate, GatedFFN, LinearFFN, LinearMixer, Model, NoOp
from blockwright.train.bld import (
    BldSettings,
    Trainee,
    needs_training,
    pair_needs_training,
    student_layer,
    trainee_of,
)
from blockwright.train.groups import Group, Schedule
from blockwright.train.initialise import AS_PUBLISHED, ffn_weights, mixer_weights
from blockwright.train.library import entries_of, measured_flops_per_s, train_library
from blockwright.train.muon import Muon
from blockwright.train.observe import observe
from blockwright.train.one_group import LibraryJob, train_group
from blockwright.train.schedule import warm_up_then_cosine
from blockwright.train.trained import Trained
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]

SETTINGS = BldSettings(learning_rate=3e-3)
MIXERS = (Attention(num_kv_heads=2), Attention(num_kv_heads=1), LinearMixer(), NoOp())
FFNS = (GatedFFN(width=48), GatedFFN(width=16), LinearFFN(), NoOp())
STEPS = 12
IDS_SBT = torch.randint(0, 64, (STEPS + 4, 4, 12), generator=torch.Generator().manual_seed(5))
BATCHES = [Batch(ids_BT=ids_BT) for ids_BT in IDS_SBT]


def _candidates(parent: Model) -> list[Candidate]:
    candidates = []
    for layer in range(len(parent.layers)):
        candidates += [Candidate(layer=layer, part="mixer", variant=variant) for variant in MIXERS]
        candidates += [Candidate(layer=layer, part="ffn", variant=variant) for variant in FFNS]
    return candidates


def _trainees(parent: Model) -> tuple[Trainee, ...]:
    return tuple(trainee_of(parent, c) for c in _candidates(parent) if needs_training(parent, c))


def _job(parent: Model, trainees: Sequence[Trainee] | None = None, **changes: object) -> LibraryJob:
    job = LibraryJob(
        parent=parent,
        trainees=_trainees(parent) if trainees is None else tuple(trainees),
        training=BATCHES[:STEPS],
        reserved=BATCHES[STEPS : STEPS + 2],
        held_out=BATCHES[STEPS + 2 :],
        settings=SETTINGS,
        checkpoint_steps=5,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def _plan(job: LibraryJob, per_group: int = 1000, keeps_states: bool = False) -> Schedule:
    parts = [job.trainees[start : start + per_group] for start in range(0, len(job.trainees), per_group)]
    groups = (Group(trainees=part, memory_bytes=0, parent_flops=0, student_flops=0) for part in parts)
    return Schedule(groups=tuple(groups), keeps_states=keeps_states, states_bytes=0, parent_bytes=0)


def _train(model: PreTrainedModel, job: LibraryJob, folder: Path, **plan: int) -> list[Trained]:
    folder.mkdir(exist_ok=True)
    return train_library(model, job, _plan(job, **plan), folder)  # type: ignore[arg-type]


def _weights(trained: Sequence[Trained], folder: Path) -> dict[str, Tensor]:
    return {f"{t.file}:{name}": tensor for t in trained for name, tensor in load_file(folder / t.file).items()}


def _assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def _naive(model: PreTrainedModel, job: LibraryJob, trainee: Trainee) -> dict[str, Tensor]:
    """One trainee, whole windows, the parent's own states from its own forward, everything written out."""
    states = [model(b.ids_BT, output_hidden_states=True).hidden_states for b in job.training]
    own = model.model.layers[trainee.layer]
    seen = list(observe(model, job.parent, job.training, job.init, {1: [16]}))
    weights: dict[str, Tensor] = {}
    for part in trainee.parts:
        variant = getattr(trainee.block, part)
        if variant == getattr(job.parent.layers[trainee.layer], part):
            weights |= {name: tensor.clone() for name, tensor in part_weights(own, part).items()}
        elif part == "mixer":
            weights |= mixer_weights(job.parent, own.state_dict(), variant, seen[trainee.layer], job.init)
        else:
            weights |= ffn_weights(own.state_dict(), variant, seen[trainee.layer], job.init)
    layer = student_layer(model, job.parent, trainee, weights)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    is_muon = job.settings.optimizer == "muon"
    vectors = [p for p in parameters if p.ndim == 1 or not is_muon]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(vectors, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)]
    if is_muon:
        optimizers.append(Muon([p for p in parameters if p.ndim == 2], lr=1.0))
    for step, batch in enumerate(job.training):
        x_BTD, y_BTD = states[step][trainee.layer], states[step][trainee.layer + 1]
        output_BTD = Walk(model, batch.segments_BT).layer(trainee.layer, x_BTD, layer)
        base = torch.zeros_like(x_BTD) if job.settings.loss == "output" else x_BTD
        ((output_BTD - y_BTD).square().sum() / (y_BTD - base).square().sum()).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = job.settings.learning_rate * warm_up_then_cosine(step, len(job.training))
            optimizer.step()
            optimizer.zero_grad()
    return {name: p.detach() for name, p in layer.named_parameters() if p.requires_grad}


PAIR = Block(mixer=NoOp(), ffn=GatedFFN(width=16))
OWN_FFN = Block(mixer=NoOp(), ffn=GatedFFN(width=48))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("loss", ["output", "delta"])
def test_one_pass_teaches_what_each_learns_alone_in_memory(
    optimizer: str, loss: str, make_parent: MakeParent, tmp_path: Path
) -> None:
    model, parent = make_parent()
    model.double()  # in fp32 AdamW's first steps turn the rounding of gradients near 0 into whole steps
    chosen = [t for t in _trainees(parent) if t.layer == 1]
    chosen += [Trainee(layer=1, block=block, parts=("mixer", "ffn")) for block in (PAIR, OWN_FFN)]
    settings = replace(SETTINGS, optimizer=optimizer, loss=loss)
    job = _job(parent, chosen, settings=settings)
    learnt = _weights(_train(model, job, tmp_path), tmp_path)
    for trainee in chosen:
        for name, tensor in _naive(model, job, trainee).items():
            difference = (learnt[f"{trainee.name}.safetensors:{name}"] - tensor).abs().max()
            assert difference < 1e-6, f"{trainee.name}: {name}"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_together_is_alone_bit_for_bit(optimizer: str, make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, settings=replace(SETTINGS, optimizer=optimizer))
    together = _weights(_train(model, job, tmp_path / "together"), tmp_path / "together")
    alone = _weights(_train(model, job, tmp_path / "alone", per_group=1), tmp_path / "alone")
    assert len({name.partition(":")[0] for name in together}) == 12
    _assert_same(together, alone)


@pytest.mark.parametrize("keeps_states", [False, True])
def test_groups_with_states_on_disk_learn_the_same(keeps_states: bool, make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent)
    whole = _weights(_train(model, job, tmp_path / "whole"), tmp_path / "whole")
    judged = len(job.reserved) + len(job.held_out)
    for per_group, num_groups, num_first in ((3, 4, 2), (4, 3, 1), (5, 3, 1)):  # four trainees in each layer
        folder = tmp_path / str(per_group)
        seen: list[int] = []
        attention = model.model.layers[0].self_attn
        handle = attention.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        trained = _train(model, job, folder, per_group=per_group, keeps_states=keeps_states)
        handle.remove()
        _assert_same(_weights(trained, folder), whole)
        from_embeddings = num_first if keeps_states else num_groups
        assert len(seen) == STEPS * (1 + from_embeddings) + 2 * judged * num_groups  # 1: calibration; 2: before, after
        assert not list(folder.glob("boundary-*"))


def test_training_lowers_every_error_keeps_curves_and_leaves_the_parent_alone(
    make_parent: MakeParent, tmp_path: Path
) -> None:
    model, parent = make_parent()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = _train(model, _job(parent, init=AS_PUBLISHED), tmp_path)
    assert len(trained) == 12
    ends = [sum(sum(t.curve["delta"][span]) for t in trained) for span in (slice(4), slice(-4, None))]
    assert ends[1] < ends[0]
    for result in trained:
        assert result.nmse < result.initial_nmse
        assert result.delta_nmse < result.initial_delta_nmse
        assert result.curve["step"] == tuple(range(1, STEPS + 1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    entries, blocks = entries_of(trained)
    assert [entry.candidate for entry in entries] == [c for c in _candidates(parent) if needs_training(parent, c)]
    assert not blocks


@pytest.mark.parametrize(("optimizer", "per_group"), [("adamw", 1000), ("muon", 4)])
@pytest.mark.parametrize("killed_at", [3, 7, 11])
def test_a_killed_run_goes_on_bit_for_bit(
    optimizer: str, per_group: int, killed_at: int, make_parent: MakeParent, tmp_path: Path
) -> None:
    model, parent = make_parent()
    job = _job(parent, settings=replace(SETTINGS, optimizer=optimizer))
    whole = _train(model, job, tmp_path / "whole", per_group=per_group, keeps_states=True)
    plan = _plan(job, per_group, keeps_states=True)
    folder = tmp_path / "killed"
    folder.mkdir()
    steps: list[tuple[int, int]] = []

    def kill(group: int, step: int) -> None:
        if group == len(plan.groups) - 1 and step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_library(model, job, plan, folder, kill)
    resumed = train_library(model, job, plan, folder, lambda group, step: steps.append((group, step)))
    assert resumed == whole
    _assert_same(_weights(resumed, folder), _weights(whole, tmp_path / "whole"))
    begun = killed_at // job.checkpoint_steps * job.checkpoint_steps
    assert steps == [(len(plan.groups) - 1, step + 1) for step in range(begun, STEPS)]
    assert not list(folder.glob("*.state"))


def test_a_candidate_that_is_further_waits_for_the_others(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent)
    whole = _train(model, job, tmp_path / "whole")
    folder = tmp_path / "later"
    folder.mkdir()

    def kill(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_group(model, replace(job, trainees=job.trainees[:3]), folder, on_step=kill)
    trained = _train(model, job, folder)
    assert trained == whole
    _assert_same(_weights(trained, folder), _weights(whole, tmp_path / "whole"))


def test_the_ffn_of_a_pair_without_mixer_learns_on_the_layers_own_input(
    make_parent: MakeParent, tmp_path: Path
) -> None:
    model, parent = make_parent()
    pair = Trainee(layer=1, block=PAIR, parts=("mixer", "ffn"))
    weights = ffn_weights(model.model.layers[1].state_dict(), PAIR.ffn, torch.arange(48.0))
    layer = student_layer(model, parent, pair, weights)
    x_BTD = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(6))
    walk = Walk(model)
    torch.testing.assert_close(walk.layer(1, x_BTD, layer), walk.feed(1, x_BTD, layer))
    [trained] = _train(model, _job(parent, [pair]), tmp_path)
    assert trained.delta_nmse < trained.initial_delta_nmse
    assert {name.partition(":")[2] for name in _weights([trained], tmp_path)} == set(weights)


def test_pairs_begin_with_what_their_parts_learnt_alone(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, [t for t in _trainees(parent) if t.layer == 1])
    alone = _train(model, job, tmp_path / "alone")
    starts = {entry.candidate: tmp_path / "alone" / entry.file for entry in entries_of(alone)[0]}
    pair = Trainee(layer=1, block=Block(mixer=LinearMixer(), ffn=GatedFFN(width=16)), parts=("mixer", "ffn"))
    [begun] = _train(model, _job(parent, [pair], starts=starts), tmp_path / "begun")
    [fresh] = _train(model, _job(parent, [pair]), tmp_path / "fresh")
    assert begun.initial_delta_nmse < fresh.initial_delta_nmse


def test_what_needs_training(make_parent: MakeParent) -> None:
    _, parent = make_parent()
    assert {t.block.mixer for t in _trainees(parent) if t.parts == ("mixer",)} == set(MIXERS[1:3])
    assert {t.block.ffn for t in _trainees(parent) if t.parts == ("ffn",)} == set(FFNS[1:3])
    assert pair_needs_training(parent, 0, OWN_FFN)
    assert not pair_needs_training(parent, 0, parent.layers[0])
    assert not pair_needs_training(parent, 0, Block(mixer=NoOp(), ffn=NoOp()))


def test_the_timing_finds_a_speed(make_parent: MakeParent) -> None:
    model, parent = make_parent()
    assert 1e6 < measured_flops_per_s(model, _job(parent)) < 1e12
