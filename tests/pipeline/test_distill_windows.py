"""Any number of ranks stops by the same windows, and too few of them are told of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blockwright.errors import InputError
from blockwright.model.parent import Parent, open_parent
from blockwright.pipeline.distill import _stage
from blockwright.pipeline.distill_order import DistillOrder
from blockwright.pipeline.distill_windows import judging_windows, stopping_batches
from blockwright.pipeline.inputs import Text, open_checkpoint, read_text
from blockwright.train.ranks import Ranks

ORDER = DistillOrder(
    text="t", window_tokens=8, tokens=64, batch_windows=5, learning_rate=1e-3, seed=0, eval_steps=1, judging_tokens=64
)
CHANGES: tuple[dict[str, Any], ...] = ({}, {"device": "cuda"}, {"batch_windows": 6})


@pytest.fixture
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture
def text(small_text: Path) -> Text:
    return read_text(str(small_text))


def _of(text: Text, num_documents: int) -> Text:
    return replace(text, held_out=text.held_out[:num_documents])


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_any_number_of_ranks_stops_by_the_windows_of_one(world_size: int, parent: Parent, text: Text) -> None:
    (alone,) = _shares(1, parent, text)
    shares = _shares(world_size, parent, text)
    assert sorted(map(tuple, torch.cat(shares).tolist())) == sorted(map(tuple, alone.tolist()))
    sizes = [len(share) for share in shares]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def _shares(world_size: int, parent: Parent, text: Text) -> list[torch.Tensor]:
    ranks = [Ranks(rank=rank, world_size=world_size) for rank in range(world_size)]
    return [torch.cat([batch.ids_BT for batch in stopping_batches(parent, text, ORDER, each)]) for each in ranks]


def test_more_ranks_than_windows_are_refused(parent: Parent, text: Text) -> None:
    order = replace(ORDER, window_tokens=40)
    found = torch.cat([batch.ids_BT for batch in stopping_batches(parent, text, order, Ranks.alone())])
    too_many = Ranks(rank=0, world_size=len(found) + 1)
    with pytest.raises(InputError, match=f"{len(found)} held-out windows to stop by, for {len(found) + 1} ranks"):
        stopping_batches(parent, text, order, too_many)


def test_one_held_out_document_is_too_little_to_stop_and_to_judge_by(parent: Parent, text: Text) -> None:
    with pytest.raises(InputError, match="got 0 characters"):
        judging_windows(parent, _of(text, 1), ORDER)
    assert judging_windows(parent, _of(text, 1), replace(ORDER, eval_steps=0)).num_windows >= 2


def test_judging_sees_no_document_that_stopping_saw(parent: Parent, text: Text) -> None:
    stopping = stopping_batches(parent, text, replace(ORDER, masks_documents=True), Ranks.alone())
    seen = {int(each) for batch in stopping if batch.segments_BT is not None for each in batch.segments_BT.flatten()}
    judged = judging_windows(parent, text, ORDER)
    names = [document.name for document in text.held_out]
    assert seen and judged.segments_NT is not None
    of_stopping = {names[::2][each] for each in seen}
    assert of_stopping.isdisjoint(names[1::2][int(each)] for each in judged.segments_NT.flatten())


def test_the_device_is_no_part_of_what_a_stage_is_kept_by(small_parent: Path, text: Text, tmp_path: Path) -> None:
    child, teacher = open_checkpoint(str(small_parent)), open_parent(str(small_parent))
    keys = [_stage(child, teacher, replace(ORDER, **c), text, tmp_path).inputs for c in CHANGES]
    assert keys[0] == keys[1] != keys[2]
