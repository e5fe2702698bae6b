"""Windows of the training text that nothing learns from: by them is chosen what to keep.

Held-out documents may then judge a child without having had a say in it. Windows are taken at even distances, for
documents next to each other may be alike.

Shapes: N windows, B windows of a batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.errors import InputError
from blockwright.train.windows import Batch, WindowStore

_LARGEST_SHARE = 8
"""Of short text one window in so many is reserved, and at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SomeWindows:
    """Some of the windows of a store."""

    store: WindowStore
    rows_N: Tensor

    @property
    def num_windows(self) -> int:
        """N."""
        return len(self.rows_N)

    def read(self, rows_B: Tensor) -> Batch:
        """As those of the store."""
        return self.store.read(self.rows_N[rows_B])


def reserve(store: WindowStore, wanted: int, num_training: int) -> tuple[SomeWindows, SomeWindows]:
    """Parts a store into windows to learn from and windows to choose by.

    Args:
        store: all windows of the training text.
        wanted: to choose by, at most.
        num_training: what training asks for; windows beyond that cost it nothing.

    Raises:
        InputError: there is but one window.
    """
    found = store.num_windows
    if found < 2:
        raise InputError(
            "text and tokens",
            got="one window of training text",
            expected="at least 2, for one is kept back to choose weights by",
            remedy="Give more text or tokens, or a shorter window.",
        )
    count = min(wanted, max(found - num_training, found // _LARGEST_SHARE, 1))
    chosen = torch.arange(count) * found // count
    is_left_N = torch.ones(found, dtype=torch.bool)
    is_left_N[chosen] = False
    left, reserved = is_left_N.nonzero().flatten(), chosen
    return SomeWindows(store=store, rows_N=left), SomeWindows(store=store, rows_N=reserved)
