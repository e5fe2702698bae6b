"""Several good choices that differ: a pool.

The first is the best. Each further one is the best of those that differ from every earlier one in at least k layers
(Puzzle, appendix B): to the limits come, for every earlier choice y,

    Σ_l Σ_{c ∈ l} x_c · y_c ≤ L − k

Groups are whole blocks, for a layer differs where its mixer or its ffn does.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from blockwright.search.problem import Choice, Problem, merged
from blockwright.search.solve import Feasible, Memory, Optimal, is_settled, prepare, solve_prepared


def pool(
    problem: Problem,
    n: int,
    min_layers_differ: int,
    *,
    time_limit_s: float = 60.0,
    tolerance: float = 0.0,
    first: Optimal | Feasible | None = None,
    on_found: Callable[[Optimal | Feasible], None] = lambda answer: None,
    on_end: Callable[[bool], None] = lambda is_complete: None,
) -> list[Optimal | Feasible]:
    """The best choices, each at least so different from all before it.

    Args:
        problem: what to choose from.
        n: how many.
        min_layers_differ: layers in which any two of them differ; from 1 to the number of layers.
        time_limit_s: seconds for each plan, so that all may take n times as long.
        tolerance: as `solve`.
        first: what `solve` gave, where it is known: of equally good ones the pool then begins with the same.
        on_found: called with each.
        on_end: called at the end with whether time was enough: each is the best of its turn, within the tolerance,
            and where they are fewer than n, there is no further one.

    Returns:
        At most n: fewer where no further choice is within the limits and different enough, or the time is up. Their
        choices are whole blocks.

    Raises:
        ValueError: min_layers_differ is out of range.
    """
    blocks = merged(problem)
    num_layers = len(blocks.groups)
    if not 1 <= min_layers_differ <= num_layers:
        raise ValueError(f"min_layers_differ from 1 to the {num_layers} layers")
    prepared, memory = prepare(blocks), Memory()
    is_complete = True
    found: list[Optimal | Feasible] = []
    while len(found) < n:
        if first is not None and not found:
            answer = replace(first, chosen=_as_blocks(first.chosen, blocks))
        else:
            answer = solve_prepared(prepared, time.monotonic() + time_limit_s, tolerance, memory=memory)
        is_complete = is_complete and is_settled(answer, tolerance)
        if not isinstance(answer, Optimal | Feasible):
            break
        found.append(answer)
        on_found(answer)
        is_same_C = np.zeros(len(prepared.column_of))
        is_same_C[prepared.columns_of(answer.chosen)] = 1.0
        prepared = replace(prepared, arrays=prepared.arrays.with_row(is_same_C, num_layers - min_layers_differ))
        memory.with_row()
        memory.floor = max(memory.floor, answer.bound)
    on_end(is_complete)
    return found


def _as_blocks(chosen: Sequence[Choice], blocks: Problem) -> tuple[Choice, ...]:
    taken = {candidate for choice in chosen for candidate in choice.candidates}
    return tuple(next(c for c in group if taken.issuperset(c.candidates)) for group in blocks.groups)
