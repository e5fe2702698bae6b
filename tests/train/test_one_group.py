"""One group: what settings change, what is no number, which tokens count, and states that cannot be read."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Candidate, GatedFFN, LinearFFN, LinearMixer, Model
from blockwright.train import students
from blockwright.train.bld import BldSettings, LayerBatch, Trainee, normalised, student_layer, trainee_of
from blockwright.train.initialise import AS_PUBLISHED
from blockwright.train.library import entries_of
from blockwright.train.one_group import LibraryJob, train_group
from blockwright.train.trained import state_path
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]

SETTINGS = BldSettings(learning_rate=3e-3)
STEPS = 12
IDS_SBT = torch.randint(0, 64, (STEPS + 4, 4, 12), generator=torch.Generator().manual_seed(5))
BATCHES = [Batch(ids_BT=ids_BT) for ids_BT in IDS_SBT]


def _trainees(parent: Model) -> tuple[Trainee, ...]:
    mixers = [Candidate(layer=1, part="mixer", variant=v) for v in (Attention(num_kv_heads=1), LinearMixer())]
    ffns = [Candidate(layer=1, part="ffn", variant=v) for v in (GatedFFN(width=16), LinearFFN())]
    return tuple(trainee_of(parent, candidate) for candidate in (*mixers, *ffns))


def _job(parent: Model, trainees: Sequence[Trainee], **changes: object) -> LibraryJob:
    job = LibraryJob(
        parent=parent,
        trainees=tuple(trainees),
        training=BATCHES[:STEPS],
        reserved=BATCHES[STEPS : STEPS + 2],
        held_out=BATCHES[STEPS + 2 :],
        settings=SETTINGS,
        checkpoint_steps=5,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def _folder(place: Path, name: str) -> Path:
    (place / name).mkdir()
    return place / name


def test_every_settings_field_changes_what_is_learnt(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    chosen = [_trainees(parent)[-1]]
    changes: list[dict[str, object]] = [
        {},
        {"loss": "delta"},
        {"skip_first_tokens": 1},
        {"is_per_token": True},
        {"optimizer": "muon"},
        {"precision": "bf16"},
        {"learning_rate": 1e-3},
    ]
    found = set()
    for index, change in enumerate(changes):
        folder = _folder(tmp_path, str(index))
        job = _job(parent, chosen, settings=replace(SETTINGS, **change), init=AS_PUBLISHED)
        [trained] = train_group(model, job, folder)
        found.add(tuple(load_file(folder / trained.file)["mlp.linear_mlp.weight"][0].tolist()))
        assert trained.nmse < trained.initial_nmse
    assert len(found) == len(changes)


def test_a_loss_that_is_no_number_stops_that_candidate_alone(
    make_parent: MakeParent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, parent = make_parent()
    job = _job(parent, _trainees(parent))
    whole = {t.trainee: t for t in train_group(model, job, _folder(tmp_path, "whole"))}
    ill = job.trainees[2]
    real = students.run_trainee

    def run(walk: Walk, trainee: Trainee, layer: torch.nn.Module, seen: object) -> Tensor:
        output_BTD = real(walk, trainee, layer, seen)  # type: ignore[arg-type]
        run.calls += trainee == ill  # type: ignore[attr-defined]
        return output_BTD * float("nan") if trainee == ill and run.calls == 8 else output_BTD  # type: ignore[attr-defined]

    run.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(students, "run_trainee", run)
    trained = {t.trainee: t for t in train_group(model, job, _folder(tmp_path, "ill"))}
    assert trained[ill].stopped_at == 7
    assert trained[ill].trained_steps == 5
    assert len(trained[ill].curve["step"]) == 7
    assert trained[ill].nmse < trained[ill].initial_nmse
    others = [t for t in job.trainees if t != ill]
    assert [trained[t] for t in others] == [whole[t] for t in others]
    assert entries_of(list(trained.values()))[0][2].stopped_at == 7


def test_a_rate_beyond_all_bounds_leaves_first_weights(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, _trainees(parent)[-1:], settings=replace(SETTINGS, learning_rate=1e30))
    [trained] = train_group(model, job, tmp_path)
    assert trained.stopped_at is not None
    assert (trained.nmse, trained.trained_steps) == (trained.initial_nmse, 0)


def test_segments_and_first_tokens_do_not_count_where_asked(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    segments_BT = torch.tensor([[0] * 5 + [1] * 7]).expand(4, 12)
    packed = [Batch(ids_BT=batch.ids_BT, segments_BT=segments_BT) for batch in BATCHES]
    settings = replace(SETTINGS, skip_first_tokens=1)
    job = _job(parent, _trainees(parent)[:1], settings=settings, training=packed[:STEPS], held_out=packed[STEPS:])
    [trained] = train_group(model, job, tmp_path)
    squares, norms = 0.0, 0.0
    layer = student_layer(model, parent, job.trainees[0], load_file(tmp_path / trained.file))
    for batch in job.held_out:
        with torch.no_grad():
            walk = Walk(model, batch.segments_BT)
            x_BTD = walk.layer(0, walk.embed(batch.ids_BT))
            y_BTD, output_BTD = walk.layer(1, x_BTD), walk.layer(1, x_BTD, layer)
        kept = [place for place in range(12) if place not in (0, 5)]
        squares += (output_BTD - y_BTD)[:, kept].square().sum().item()
        norms += y_BTD[:, kept].square().sum().item()
    assert trained.nmse == pytest.approx(squares / norms, rel=1e-5)


def test_a_broken_state_is_refused(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, _trainees(parent)[:1])
    path = state_path(tmp_path, job.trainees[0])

    def kill(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_group(model, job, tmp_path, on_step=kill)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="Delete the file, and this one is trained anew") as caught:
        train_group(model, job, tmp_path)
    assert caught.value.field == str(path)
    path.unlink()
    train_group(model, job, tmp_path)


def test_a_batch_in_which_no_token_counts_teaches_nothing() -> None:
    some_BTD = torch.ones(2, 3, 4)
    seen = LayerBatch(
        x_BTD=some_BTD,
        mid_BTD=some_BTD,
        y_BTD=some_BTD,
        output_BT=torch.ones(2, 3),
        delta_BT=torch.ones(2, 3),
        counts_BT=torch.zeros(2, 3),
        context={},
    )
    for is_per_token in (False, True):
        assert normalised(torch.ones(2, 3), seen, "output", is_per_token) == 0
