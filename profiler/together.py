"""Which cases are timed in turn: parts of one bench and point, as many as memory holds."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from blockwright.count import ffn_weight_bytes, mixer_weight_bytes, shared_weight_bytes
from blockwright.profiler.bench import COPIES, block_of
from blockwright.profiler.measure import PartCase

_MOST_TOGETHER, _MOST_TOGETHER_BYTES = 16, 2**30
"""So many parts, and so many bytes of weights."""

C = TypeVar("C")


def measured_together(wanted: Sequence[C]) -> Iterator[list[C]]:
    """The cases in their order, parts of one bench and point joined as far as their weights fit into memory."""
    group: list[C] = []
    for case in wanted:
        if group and not _may_join(group, case):
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def _may_join(group: Sequence[object], case: object) -> bool:
    if not isinstance(case, PartCase):
        return False
    parts = [each for each in group if isinstance(each, PartCase)]
    if len(parts) < len(group) or len(parts) == _MOST_TOGETHER:
        return False
    same = all((each.bench, each.point) == (case.bench, case.point) for each in parts)
    return same and sum(map(_stack_bytes, [*parts, case])) <= _MOST_TOGETHER_BYTES


def _stack_bytes(case: PartCase) -> int:
    """Of the weights of both stacks, with what torch puts around each."""
    model = case.bench.model
    block = block_of(case.variant)
    own = mixer_weight_bytes(model, block.mixer) + ffn_weight_bytes(model, block.ffn)
    return 3 * COPIES * own + (2 * shared_weight_bytes(model) if case.bench.backend == "torch" else 0)
