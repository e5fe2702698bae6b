"""What training made worse on text that it left out is not kept, and its record says so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from blockwright.library import BlockEntry, Entry
from blockwright.spec import Attention, Block, Candidate, GatedFFN, Model
from blockwright.train import one_group
from blockwright.train.bld import BldSettings, Trainee, trainee_of
from blockwright.train.library import entries_of
from blockwright.train.one_group import LibraryJob, first_weights_of, train_group
from blockwright.train.students import Student
from blockwright.train.windows import Batch

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]

IDS_SBT = torch.randint(0, 64, (8, 4, 12), generator=torch.Generator().manual_seed(5))
NARROW = Candidate(layer=1, part="ffn", variant=GatedFFN(width=16))
PAIR = Block(mixer=Attention(num_kv_heads=1), ffn=GatedFFN(width=16))
HARMFUL, HELPFUL = 3.0, 1e-4


def _job(parent: Model, rate: float) -> LibraryJob:
    return LibraryJob(
        parent=parent,
        trainees=(trainee_of(parent, NARROW), Trainee(layer=1, block=PAIR, parts=("mixer", "ffn"))),
        training=[Batch(ids_BT=ids_BT) for ids_BT in IDS_SBT],
        reserved=[Batch(ids_BT=ids_BT) for ids_BT in IDS_SBT[:2]],
        held_out=[Batch(ids_BT=ids_BT) for ids_BT in IDS_SBT[:2]],
        settings=BldSettings(learning_rate=rate),
        checkpoint_steps=3,
    )


def test_what_training_made_worse_keeps_its_first_weights(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, HARMFUL)
    for result in train_group(model, job, tmp_path):
        assert result.trained_nmse is not None
        assert result.trained_nmse > result.initial_nmse == result.nmse
        assert result.trained_reserved_nmse is not None
        assert result.trained_reserved_nmse > result.initial_reserved_nmse
        assert result.trained_delta_nmse is not None
        assert result.trained_delta_nmse > result.initial_delta_nmse == result.delta_nmse
        assert (result.kept, result.trained_steps, result.stopped_at) == ("initial", 0, None)
        assert len(result.curve["step"]) == len(IDS_SBT)
        first, kept = first_weights_of(model, job, result.trainee, tmp_path), load_file(tmp_path / result.file)
        assert first.keys() == kept.keys()
        assert all(torch.equal(first[name], tensor) for name, tensor in kept.items())


def test_what_training_made_better_is_kept(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    for result in train_group(model, _job(parent, HELPFUL), tmp_path):
        assert result.trained_nmse == result.nmse < result.initial_nmse
        assert result.trained_delta_nmse == result.delta_nmse < result.initial_delta_nmse
        assert (result.kept, result.trained_steps) == ("trained", len(IDS_SBT))


@pytest.mark.parametrize("rate", [HARMFUL, HELPFUL])
def test_the_index_says_what_is_kept(rate: float, make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    trained = train_group(model, _job(parent, rate), tmp_path)
    told: list[Entry | BlockEntry] = [*entries_of(trained)[0], *entries_of(trained)[1]]
    assert len(told) == len(trained)
    for entry, result in zip(told, trained, strict=True):
        assert (entry.kept, entry.nmse) == (result.kept, result.nmse)
        assert (entry.trained_nmse, entry.trained_delta_nmse) == (result.trained_nmse, result.trained_delta_nmse)


def test_what_is_no_number_after_training_has_no_trained_error(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, 1e30)
    for result in train_group(model, replace(job, trainees=job.trainees[:1]), tmp_path):
        assert (result.kept, result.trained_nmse, result.trained_delta_nmse) == ("initial", None, None)
        assert result.nmse == result.initial_nmse


def test_held_out_text_has_no_say_in_what_is_kept(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, HELPFUL)
    other = [Batch(ids_BT=ids_BT.flip(-1)) for ids_BT in IDS_SBT[:2]]
    opposite = [Batch(ids_BT=torch.full((4, 12), token)) for token in (1, 2)]
    kept = []
    for index, held_out in enumerate((other, opposite)):
        folder = tmp_path / str(index)
        folder.mkdir()
        kept.append(train_group(model, replace(job, held_out=held_out), folder))
    for one, two in zip(*kept, strict=True):
        assert one.kept == two.kept == "trained"
        assert one.nmse != two.nmse
        assert (one.trained_reserved_nmse, one.curve) == (two.trained_reserved_nmse, two.curve)


def test_reserved_text_says_what_is_kept(
    make_parent: MakeParent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, parent = make_parent()
    for better, kept in (("reserved", "trained"), ("held_out", "initial")):
        job = _job(parent, HELPFUL)

        def made_up(
            _: object, asked: LibraryJob, batches: object, students: list[Student], better: str = better
        ) -> dict[Trainee, tuple[float, float]]:
            is_better = batches is getattr(asked, better)
            value = 0.5 if students[0].step == 0 else 0.25 if is_better else 0.75
            return {student.trainee: (value, value) for student in students}

        job = replace(job, reserved=list(job.reserved), held_out=list(job.held_out))
        monkeypatch.setattr(one_group, "_errors_on", made_up)
        folder = tmp_path / better
        folder.mkdir()
        assert [result.kept for result in train_group(model, job, folder)] == [kept, kept]


def test_a_killed_run_keeps_the_same(make_parent: MakeParent, tmp_path: Path) -> None:
    model, parent = make_parent()
    job = _job(parent, HARMFUL)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = train_group(model, job, tmp_path / "whole")

    def kill(step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_group(model, job, tmp_path / "killed", on_step=kill)
    assert train_group(model, job, tmp_path / "killed") == whole
