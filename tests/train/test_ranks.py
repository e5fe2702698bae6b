import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockwright.errors import InputError
from blockwright.train.ranks import Ranks


def test_one_process_sums_to_what_it_has() -> None:
    assert torch.equal(Ranks.alone().sum(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


def test_torchrun_says_which_rank_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Ranks.of_environment() == Ranks(rank=2, world_size=4)


@given(num_rows=st.integers(0, 12), world_size=st.integers(1, 5))
def test_shards_of_all_ranks_are_the_batch(num_rows: int, world_size: int) -> None:
    batch = torch.arange(num_rows)
    shards = [Ranks(rank=rank, world_size=world_size).shard(batch) for rank in range(world_size)]
    assert torch.cat(shards).sort().values.equal(batch)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(InputError, match="2 of 2"):
        Ranks(rank=2, world_size=2)
