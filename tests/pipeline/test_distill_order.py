"""What is refused before a distillation begins, and where it runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.model.parent import Parent, open_parent
from blockwright.pipeline.distill_order import DistillOrder, check_order, check_pair, default_device, device_of
from blockwright.pipeline.inputs import Checkpoint, open_checkpoint
from blockwright.train.ranks import Ranks

ORDER = DistillOrder(text="t", window_tokens=8, tokens=64, batch_windows=4, learning_rate=1e-3, seed=0)
TWO = Ranks(rank=1, world_size=2)


@pytest.fixture
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture
def child(small_parent: Path, tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "child"
    shutil.copytree(small_parent, folder)
    return open_checkpoint(str(folder))


def test_a_child_of_the_parents_own_tokens_passes(child: Checkpoint, parent: Parent) -> None:
    check_pair(child, parent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 301}, "301 tokens in the child"),
        ({"hidden_size": 64}, "hidden size 64"),
    ],
)
def test_another_shape_is_refused(changes: dict[str, int], words: str, child: Checkpoint, parent: Parent) -> None:
    with pytest.raises(InputError, match=words):
        check_pair(replace(child, spec=replace(child.spec, **changes)), parent)


def test_other_tokens_are_refused_by_name(child: Checkpoint, parent: Parent) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(child.folder)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(child.folder)
    larger = replace(child, spec=replace(child.spec, vocab_size=400))
    bigger = replace(parent, spec=replace(parent.spec, vocab_size=400))
    with pytest.raises(InputError, match=r"token 'zebra' with id \d+ in the child and None in the teacher"):
        check_pair(larger, bigger)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": 3}, "at most the 2 windows"),
        ({"patience": 1}, "no --eval-every"),
        ({"layer_map": (0,)}, "2 rising layers"),
        ({"loss": "reverse-kl", "teacher_logits": "cached"}, "kl as the only term"),
    ],
)
def test_orders_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    order = replace(ORDER, **changes)
    with pytest.raises(InputError, match=words):
        check_order(order, order.settings, 2, 2, TWO)


def test_each_rank_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("cuda", TWO) == torch.device("cuda:1")
    assert device_of("cuda", Ranks.alone()) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (default_device(TWO), default_device(Ranks.alone())) == ("cuda", "cpu")
    order = replace(ORDER, device="cuda:0")
    with pytest.raises(InputError, match="a GPU for each rank"):
        check_order(order, order.settings, 2, 2, TWO)
