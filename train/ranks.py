"""Which of several processes this one is, and sums over all of them.

Every sum is one that all ranks get to the same bits, so that what they decide by it they decide alike.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from blockwright.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that work on one thing."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InputError(
                "rank",
                got=f"{self.rank} of {self.world_size}",
                expected="a rank from 0 to one less than the world's size",
                remedy="Start all ranks by torchrun.",
            )

    @staticmethod
    def alone() -> "Ranks":
        """One process for everything."""
        return Ranks(rank=0, world_size=1)

    @staticmethod
    def of_environment() -> "Ranks":
        """What torchrun says; alone where nobody says anything."""
        return Ranks(rank=int(os.environ.get("RANK", "0")), world_size=int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, with no gradient; the tensor itself where there is but one."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def most(self, number: int) -> int:
        """The largest of a number that each rank has its own of."""
        numbers = torch.zeros(self.world_size, dtype=torch.int64)
        numbers[self.rank] = number
        return int(self.sum(numbers).max())

    def shard(self, batch: Tensor) -> Tensor:
        """This rank's rows of a global batch: every `world_size`-th, from `rank` on."""
        return batch[self.rank :: self.world_size]
