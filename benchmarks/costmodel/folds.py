"""What is measured and what is asked for in each test, by seed: nothing here looks at a time.

widths     40 % of the pairs of widths {n, k} are measured at all row counts; asked are whole blocks of a pair that was
           not: 2·(h×h) + 2·(f×h) + (h×f). `hidden measured`: h×h was, as it is for all variants of one parent.
           `nothing measured`: none of the block's three shapes was.
rows       half of the shapes have ten row counts and nothing else, the other half all of them (`half dense`); or all
           shapes have only ten, either the same ten (`none dense`) or, which is what we advise to measure, one drawn
           from each tenth of the row counts anew for each shape (`rotated`). Asked is all else, the pairs x, x + 1
           among it.
attention  each head configuration has 16 points of batch × length: drawn for each at random (`scattered`), which is
           what we advise to measure, or the same 4 × 4 lattice for all (`lattice`). Asked is all else.
sites      the reference's test: each shape (n, k) is predicted from other shapes at the same row counts. Inverse
           distance sees all others; ours four fifths of them, for it is asked of five folds of shapes.
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
    every = blocks_of(table)
    is_ffn_measured, is_hidden_measured = is_measured[every[:, 1]], is_measured[every[:, 0]]
    blocks = {
        "hidden measured": every[~is_ffn_measured & is_hidden_measured],
        "nothing measured": every[~is_ffn_measured & ~is_hidden_measured],
    }
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


def rotated(table: Table, seed: int) -> Fold:
    """See `rows` above."""
    rng = np.random.default_rng(seed)
    counts = np.array([load_of(each)[0] for each in table.operators])
    shapes = np.unique([shape_of(each) for each in table.operators], axis=0, return_inverse=True)[1].ravel()
    is_measured = np.zeros(len(counts), bool)
    for shape in range(shapes.max() + 1):
        own = np.flatnonzero(shapes == shape)
        own = own[np.argsort(counts[own])]
        is_measured[[rng.choice(part) for part in np.array_split(own, len(ROW_COUNTS)) if len(part)]] = True
    return Fold(learn=np.flatnonzero(is_measured), predict=np.flatnonzero(~is_measured), blocks={})


def fifths_of_shapes(table: Table) -> list[Fold]:
    """Five folds of whole shapes, each to be predicted from the other four."""
    shapes = np.unique([shape_of(each) for each in table.operators], axis=0, return_inverse=True)[1].ravel()
    part = (np.random.default_rng(0).permutation(shapes.max() + 1) % 5)[shapes]
    return [Fold(learn=np.flatnonzero(part != i), predict=np.flatnonzero(part == i), blocks={}) for i in range(5)]


def blocks_of(table: Table) -> np.ndarray:
    """The rows of h×h, f×h and h×f of each block that is all there."""
    sizes = [(each.rows, each.inputs, each.outputs) for each in table.operators if isinstance(each, Matmul)]
    place = {size: row for row, size in enumerate(sizes)}
    found = []
    for rows, hidden, ffn in sizes:  # read as (rows, inputs, outputs): ffn's first matrix
        three = [place.get(size) for size in ((rows, hidden, hidden), (rows, hidden, ffn), (rows, ffn, hidden))]
        if ffn != hidden and ffn >= HIDDEN[0] and HIDDEN[0] <= hidden <= HIDDEN[1] and None not in three:
            found.append(three)
    return np.array(found, int).reshape(-1, 3)


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
