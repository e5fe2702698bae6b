"""Windows to choose by are windows that nothing learns from."""

import numpy as np
import pytest
import torch

from blockwright.errors import InputError
from blockwright.train.reserved import reserve
from blockwright.train.windows import Windows


def _store(count: int) -> Windows:
    return Windows(ids_NT=torch.arange(count)[:, None], document_N=np.zeros(count), bytes_per_token=1.0)


@pytest.mark.parametrize(
    ("found", "asked", "reserved"), [(40, 32, 8), (100, 32, 8), (34, 32, 4), (37, 32, 5), (9, 32, 1), (2, 32, 1)]
)
def test_each_window_is_learnt_from_or_chosen_by(found: int, asked: int, reserved: int) -> None:
    training, kept = reserve(_store(found), 8, asked)
    assert kept.num_windows == reserved
    rows = [store.read(torch.arange(store.num_windows)).ids_BT.flatten().tolist() for store in (training, kept)]
    assert sorted([*rows[0], *rows[1]]) == list(range(found))
    assert all(after - before >= found // reserved for before, after in zip(rows[1], rows[1][1:], strict=False))


def test_one_window_cannot_be_parted() -> None:
    with pytest.raises(InputError, match="one window of training text"):
        reserve(_store(1), 8, 4)
