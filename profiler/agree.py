"""Finds the one row of a table that contradicts all the others: edited by hand, or disturbed.

Whole models and their parts tell of each other, at each point and in each format:

    time = fixed + mixers' scale · Σ their times + ffns' scale · Σ theirs

Fitted to all whole models, with one part's time left free or one whole model left out, in turn. A row is odd where that
alone brings the others to agree (`_AGREE`, and `_BETTER` times as well as before) where they did not (`_APART`), and
the row is off by more than `_FACTOR`. On the shipped profile whole models agree within 3 %. With 5 % of noise on all of
its rows, at most one in 200 such profiles has a row called odd. Of its parts made 3 times slower 21 of 24 are found, of
those made 3 times faster 17, and of its whole models all; linear parts are too small to show in a whole model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from blockwright.hw_profiles.profile import Profile, TimeRow, WholeRow
from blockwright.profiler.check import describe

_FACTOR = 2.5
_AGREE = 0.05
_APART = 0.06
_BETTER = 3.5
"""This and `_APART` are where 5 % of noise on the shipped profile seldom passes for an odd row: at 2.5 and without the
other, 10 in 200 did."""
_LEAST_WHOLES = 8
"""Fewer are met by a free part whatever they are: there are four unknowns."""
_ALIKE = 0.1
"""As in `time_model`: how much it weighs that mixers and ffns have one scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OddRow:
    """A row, and what all others at its point make of it."""

    row: TimeRow | WholeRow
    expected_s: float
    num_others: int
    error: float
    """The largest relative error of the others among themselves."""
    before: float
    """The same with this row."""

    def __str__(self) -> str:
        return (
            f"{describe(self.row)}: {self.row.time_s:.3g} s, where the {self.num_others} other rows at this point say "
            f"{self.expected_s:.3g} s and agree within {100 * self.error:.0f} %, with it within "
            f"{100 * self.before:.0f} %: edited, or disturbed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """What of the others' disagreement is left, and what they make of the row."""

    row: TimeRow | WholeRow
    error: float
    expected_s: float


def odd_rows(profile: Profile) -> tuple[OddRow, ...]:
    """Holds parts and whole models against each other; of each backend, format and point at most one row is odd."""
    found: list[OddRow] = []
    for key in dict.fromkeys((row.backend, row.format, row.point) for row in profile.times):
        parts = [row for row in profile.times if (row.backend, row.format, row.point) == key]
        wholes = [row for row in profile.wholes if (row.backend, row.format, row.point) == key]
        if len(wholes) < _LEAST_WHOLES:
            continue
        before, fits = _fits(parts, wholes)
        best = min(fits, key=lambda fit: fit.error)
        if best.expected_s <= 0:  # what no row can be says that noise was fitted
            continue
        off = max(best.row.time_s, 1e-12) / best.expected_s
        if before > _APART and best.error < min(_AGREE, before / _BETTER) and not 1 / _FACTOR < off < _FACTOR:
            others = len(parts) + len(wholes) - 1
            odd = OddRow(row=best.row, expected_s=best.expected_s, num_others=others, error=best.error, before=before)
            found.append(odd)
    return tuple(found)


def _fits(parts: list[TimeRow], wholes: list[WholeRow]) -> tuple[float, list[_Fit]]:
    """The largest relative error with every row as it is, and what it is without each."""
    counts, is_mixer = _counts(parts, wholes), np.array([row.part == "mixer" for row in parts])
    times, measured = np.array([row.time_s for row in parts]), np.array([row.time_s for row in wholes])
    all_of_them = np.ones(len(wholes), dtype=bool)

    def fitted(scaled: np.ndarray, kept: np.ndarray, *free: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        columns = np.column_stack(
            [np.ones(len(wholes)), counts @ (scaled * is_mixer), counts @ (scaled * ~is_mixer), *free]
        )
        shares = columns / measured[:, None]
        alike = np.zeros(shares.shape[1])
        alike[1:3] = _ALIKE, -_ALIKE
        equations = np.vstack([shares[kept], alike])
        found = np.linalg.lstsq(equations, np.append(np.ones(kept.sum()), 0.0), rcond=None)[0]
        return float(np.abs(shares[kept] @ found - 1).max()), found, columns @ found

    def without() -> Iterator[_Fit]:
        for at, row in enumerate(parts):
            if times[at] > 0 and counts[:, at].any():
                others = np.where(np.arange(len(parts)) == at, 0.0, times)
                error, found, _ = fitted(others, all_of_them, counts[:, at] * times[at])
                scale = found[1 if is_mixer[at] else 2]
                yield _Fit(row=row, error=error, expected_s=float(times[at] * found[3] / scale) if scale > 0 else 0.0)
        for at, row in enumerate(wholes):
            error, _, foretold = fitted(times, np.arange(len(wholes)) != at)
            yield _Fit(row=row, error=error, expected_s=float(foretold[at]))

    return fitted(times, all_of_them)[0], list(without())


def _counts(parts: list[TimeRow], wholes: list[WholeRow]) -> np.ndarray:
    """How often each part stands in each whole model."""
    names = [[("mixer", mixer) for mixer, _ in row.layers] + [("ffn", ffn) for _, ffn in row.layers] for row in wholes]
    return np.array([[of_whole.count((row.part, row.variant)) for row in parts] for of_whole in names], dtype=float)
