"""What is measured and what is asked for in each test, by seed: nothing here looks at a time.

widths     40 % of the pairs of widths {n, k} are measured at all row counts; asked are whole blocks of a pair that was
           not: 2·(h×h) + 2·(f×h) + (h×f). `hidden measured`: h×h was, as it is for all variants of one parent.
           `nothing measured`: none of the block's three shapes was.
rows       half of the shapes have ten row counts and nothing else, the other half all of them (`half dense`); or all
           shapes have only ten (`none dense`). Asked is all else, the pairs x, x + 1 among it.
attention  each head configuration has 16 points of batch × length: drawn for each at random (`scattered`), or the same
           4 × 4 lattice for all (`lattice`). Asked is all else.
"""

from dataclasses import dataclass

import numpy as np
from tables import Table

from blockwright.profiler.operator_features import load_of, shape_of
from blockwright.profiler.operators import Attend, Matmul

ROW_COUNTS = (1, 8, 32, 64, 128, 256, 512, 1024, 4096, 32768)
HIDDEN = (1024, 16384)
"""The least and the most that a block's hidden size is."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Rows to learn from and rows to predict; where blocks are asked for, three rows for each and its case."""

    learn: np.ndarray
    predict: np.ndarray
    blocks: dict[str, np.ndarray]


def widths(table: Table, seed: int) -> Fold:
    """See `widths` above."""
    sizes = [(each.rows, each.inputs, each.outputs) for each in table.operators if isinstance(each, Matmul)]
    pairs = sorted({(min(n, k), max(n, k)) for _, k, n in sizes})
    drawn = np.random.default_rng(seed).permutation(len(pairs))[: round(0.4 * len(pairs))]
    measured = {pairs[index] for index in drawn}
    is_measured = np.array([(min(n, k), max(n, k)) in measured for _, k, n in sizes])
    place = {size: row for row, size in enumerate(sizes)}
    found: dict[str, list[tuple[int, int, int]]] = {"hidden measured": [], "nothing measured": []}
    for rows, hidden, ffn in sizes:  # read as (rows, inputs, outputs): ffn's first matrix
        three = [place.get(size) for size in ((rows, hidden, hidden), (rows, hidden, ffn), (rows, ffn, hidden))]
        if ffn == hidden or ffn < HIDDEN[0] or not HIDDEN[0] <= hidden <= HIDDEN[1] or None in three:
            continue
        if (min(hidden, ffn), max(hidden, ffn)) not in measured:
            case = "hidden measured" if (hidden, hidden) in measured else "nothing measured"
            found[case].append(tuple(three))  # type: ignore[arg-type]
    blocks = {case: np.array(rows) for case, rows in found.items()}
    return Fold(learn=np.flatnonzero(is_measured), predict=np.flatnonzero(~is_measured), blocks=blocks)


def rows(table: Table, seed: int, *, is_half_dense: bool) -> Fold:
    """See `rows` above. Of other tables than aiconfigurator's the nearest row counts that there are."""
    shapes = [shape_of(each) for each in table.operators]
    counts = np.array([load_of(each)[0] for each in table.operators])
    there = np.unique(counts)
    grid = {int(there[np.abs(np.log2(there / count)).argmin()]) for count in ROW_COUNTS}
    kinds = sorted(set(shapes))
    drawn = np.random.default_rng(seed).permutation(len(kinds))[: len(kinds) // 2 if is_half_dense else 0]
    dense = {kinds[index] for index in drawn}
    is_measured = np.array([shape in dense for shape in shapes]) | np.isin(counts, sorted(grid))
    return Fold(learn=np.flatnonzero(is_measured), predict=np.flatnonzero(~is_measured), blocks={})


def attention(table: Table, seed: int, *, is_lattice: bool) -> Fold:
    """See `attention` above."""
    attends = [each for each in table.operators if isinstance(each, Attend)]
    batches, contexts = (np.array([getattr(each, name) for each in attends]) for name in ("batch", "context"))
    if is_lattice:
        chosen = [_spread(np.unique(values), 4) for values in (batches, contexts)]
        is_measured = np.isin(batches, chosen[0]) & np.isin(contexts, chosen[1])
    else:
        rng = np.random.default_rng(seed)
        is_measured = np.zeros(len(attends), bool)
        shapes = np.unique([shape_of(each) for each in attends], axis=0, return_inverse=True)[1].ravel()
        for shape in range(shapes.max() + 1):
            is_measured[rng.permutation(np.flatnonzero(shapes == shape))[:16]] = True
    return Fold(learn=np.flatnonzero(is_measured), predict=np.flatnonzero(~is_measured), blocks={})


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    return values[np.linspace(0, len(values) - 1, count).round().astype(int)]
