"""The core: choices that may be part of something better, gone through group by group.

A partial choice (a label) with score s and room w left after the groups so far is given up where

    some row's w is less than the least that the groups to come take of it           (2)
    s + Σ_{g to come} min_c (s_c + μ·a_c) − μ·w ≥ ceiling, for one of several μ      (3)
    another label of the same groups has no higher s and no less w                   (4)

Thousands of labels are taken at a time, depth first. One μ is λ of the relaxation. The others are learnt: now and then
the relaxation of the groups to come is solved for a label that got through, and its prices join, since they are the
best there are for that label and good for all that resemble it. Groups in which choices spread the most come first.

For (4), room beyond the most that the groups to come can take counts for nothing, so that rows which no longer press
drop out. Where one row is left, all of (4) is one sort; where more are, labels with equal room are compared, as layers
that cost alike make them when they exchange what they take. Room is compared up to rounding; so where rounding decides
whether a choice is within its limits, labels given up by (4) are gone through after all.

Shapes: C choices, G groups, R rows, N labels, M prices; in a core, O options of a group.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from blockwright.search.arrays import Arrays
from blockwright.search.relaxation import solve_lp

_CHUNK = 1 << 13
"""Labels at a time: enough for NumPy to be busy, few enough to stay in the cache and to hold little memory."""
_LEARN_EVERY = 3000
"""Labels until the first further price is learnt; the next ones after twice, three times … as many."""
_MAX_PRICES = 48
_PRICES_AT_ONCE = 16
_FEWEST_TO_LEARN_FOR = 3
_ROUNDING = 1e-11
"""Room that sums in floating point may be off by, in scaled rows; what is found is checked again outside."""
_SAME_ROOM = 1e-13
"""Scaled room that differs by less is the same: some hundred sums' rounding, and far below `_ROUNDING`."""
_MERGES_AFTER = 50_000
"""Labels that were gone on from. Measured on a 2-core Zen 3: sooner, pools of 80 × 54 take 1.4 times as long; later,
problems that cannot do without take longer than the 0.1 to 0.4 s that they do."""
_FEWEST_MERGED, _MERGES_TRIED = 0.1, 50_000
"""Labels with equal room are no longer looked for where fewer than this share of so many went."""

Accept = Callable[[np.ndarray], bool]
"""Whether the choice of every group is within all limits, exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search ended with."""

    columns_G: np.ndarray | None
    """The choice of each group; None where none was found."""
    score: float
    """Infinite where none was found."""
    bound: float
    """Nothing within all rows has a lower score; infinite where nothing is within all rows."""
    prices_MR: np.ndarray | None = None
    """Prices that were learnt, for the next problem of the kind."""


class _Labels(NamedTuple):
    """Partial choices at one depth, and how to trace them back."""

    depth: int
    score_N: np.ndarray
    room_RN: np.ndarray
    before: "_Labels | None"
    before_N: np.ndarray
    """Which label of `before` each one comes from."""
    option_N: np.ndarray

    def take(self, index: np.ndarray | slice) -> "_Labels":
        return self._replace(
            score_N=self.score_N[index],
            room_RN=self.room_RN[:, index],
            before_N=self.before_N[index],
            option_N=self.option_N[index],
        )


class _Group(NamedTuple):
    """The options of one group in a core."""

    place: int
    columns_O: np.ndarray
    score_O: np.ndarray
    cost_OR: np.ndarray


class _Reach(NamedTuple):
    """How far to go."""

    deadline: float
    ceiling: float
    tolerance: float
    precision: float


class _Done(NamedTuple):
    found: Found
    is_complete: bool


class Core:
    """The choices that a ceiling leaves, group by group."""

    def __init__(
        self, arrays: Arrays, reduced_C: np.ndarray, delta: float, prices_MR: np.ndarray, accept: Accept
    ) -> None:
        self.accept = accept
        self.num_groups, self.num_rows = arrays.num_groups, len(arrays.room_R)
        kept = np.flatnonzero(reduced_C <= delta)
        parts = np.split(kept, np.searchsorted(arrays.group_C[kept], np.arange(1, self.num_groups)))
        groups = [
            _Group(place=i, columns_O=part, score_O=arrays.scores_C[part], cost_OR=arrays.costs_CR[part])
            for i, part in enumerate(parts)
        ]
        self.fixed = [group for group in groups if len(group.columns_O) == 1]
        weight_R = np.maximum(prices_MR[0], 1e-3 * prices_MR[0].max(initial=0.0) + 1e-300)
        free = [group for group in groups if len(group.columns_O) > 1]
        self.free = sorted(free, key=lambda group: -np.ptp(group.cost_OR @ weight_R))
        self.room_R = arrays.room_R - sum((group.cost_OR[0] for group in self.fixed), np.zeros(self.num_rows))
        self.score = float(sum(group.score_O[0] for group in self.fixed))
        least = [group.cost_OR.min(axis=0) for group in self.free]
        self.least_DR = (
            np.vstack([np.cumsum(least[::-1], axis=0)[::-1], np.zeros(self.num_rows)])
            if least
            else (np.zeros((1, self.num_rows)))
        )
        most = [group.cost_OR.max(axis=0) for group in self.free[::-1]]
        self.most_DR = np.vstack([np.zeros((1, self.num_rows)), *most]).cumsum(axis=0)[::-1]
        self.num_compared = self.num_merged = 0
        self.is_rounding_decisive = False
        """Whether a choice came to its end and was not accepted, so that one given up for it might have been."""
        self.prices_MR = np.zeros((0, self.num_rows))
        self.times_best_M = np.zeros(0, dtype=np.int64)
        """How often each price gave the best bound, among the labels that prices were learnt from."""
        self.ahead_DM = np.zeros((len(self.free) + 1, 0))
        for price_R in prices_MR:
            self._learn(price_R)

    def search(
        self,
        found: Found,
        *,
        deadline: float,
        ceiling: float = np.inf,
        tolerance: float = 0.0,
        precision: float = 0.0,
        beam: int | None = None,
    ) -> _Done:
        """What is better than `found` and below the ceiling; of a beam, only what it comes across."""
        self.is_rounding_decisive = False
        reach = _Reach(deadline=deadline, ceiling=ceiling, tolerance=tolerance, precision=precision)
        done = self._search(found, reach, beam, has_merging=True)
        if beam is None and done.is_complete and self.is_rounding_decisive:
            done = self._search(done.found, reach, beam, has_merging=False)
        return done

    def _search(self, found: Found, reach: _Reach, beam: int | None, has_merging: bool) -> _Done:
        best, since, learnt, expanded = found, 0, 0, 0
        stack = [self._root()]
        while stack:
            if time.monotonic() > reach.deadline:
                return _Done(best, is_complete=False)
            labels = stack.pop()
            if labels.depth == len(self.free):
                best = self._finish(labels, best)
                continue
            limit = min(reach.ceiling, best.score - reach.tolerance) - reach.precision
            since += len(labels.score_N) * len(self.free[labels.depth].columns_O)
            expanded += len(labels.score_N)
            labels = self._expand(labels, limit)
            if has_merging and expanded > _MERGES_AFTER:
                labels = self._merge(labels)
            if beam is not None and len(labels.score_N) > beam:
                labels = labels.take(np.argpartition(self._bounds(labels).max(axis=0), beam)[:beam])
            if since > _LEARN_EVERY * (1 + learnt) and len(self.prices_MR) < _MAX_PRICES:
                since, learnt = 0, learnt + 1
                labels = self._learn_from(labels, limit)
            for start in range(0, len(labels.score_N), _CHUNK):
                stack.append(labels.take(slice(start, start + _CHUNK)))
        return _Done(best, is_complete=True)

    def _root(self) -> _Labels:
        none = np.zeros(1, dtype=np.int32)
        return _Labels(0, np.array([self.score]), self.room_R[:, None], None, none, none)

    def _expand(self, labels: _Labels, limit: float) -> _Labels:
        """All labels one group deeper that pass (2) and (3)."""
        group, depth = self.free[labels.depth], labels.depth + 1
        num_options = len(group.score_O)
        score_N = (labels.score_N[:, None] + group.score_O).ravel()
        room_RN = (labels.room_RN[:, :, None] - group.cost_OR.T[:, None]).reshape(self.num_rows, len(score_N))
        alive = np.flatnonzero((room_RN >= self.least_DR[depth, :, None] - _ROUNDING).all(axis=0))
        score_N, room_RN = score_N[alive], room_RN[:, alive]
        for start in range(0, len(self.prices_MR), _PRICES_AT_ONCE):
            some = slice(start, start + _PRICES_AT_ONCE)
            bound_MN = self.ahead_DM[depth, some, None] - self.prices_MR[some] @ room_RN
            passed = np.flatnonzero(score_N + bound_MN.max(axis=0) < limit)
            alive, score_N, room_RN = alive[passed], score_N[passed], room_RN[:, passed]
        before_N, option_N = np.divmod(alive.astype(np.int32), num_options)
        return _Labels(depth, score_N, room_RN, labels, before_N, option_N)

    def _merge(self, labels: _Labels) -> _Labels:
        """The labels that pass (4)."""
        if len(labels.score_N) < 2:
            return labels
        most_R = self.most_DR[labels.depth]
        pressing = np.flatnonzero(labels.room_RN.min(axis=1) < most_R)
        if len(pressing) > 1 and not self._has_equals:
            return labels
        if not len(pressing):
            return labels.take(np.array([labels.score_N.argmin()]))
        room_RN = np.rint(np.minimum(labels.room_RN[pressing], most_R[pressing, None]) / _SAME_ROOM)
        if len(room_RN) == 1:
            order = np.lexsort((labels.score_N, -room_RN[0]))
            score_N = labels.score_N[order]
            is_kept = np.append(True, score_N[1:] < np.minimum.accumulate(score_N)[:-1])
        else:
            weight_R = np.sqrt(2.0 + np.arange(len(room_RN)))
            mixed_N = (weight_R[:, None] * room_RN).sum(axis=0)  # equal where room is, and seldom elsewhere
            order = np.lexsort((labels.score_N, mixed_N))
            is_kept = np.append(True, (room_RN[:, order[1:]] != room_RN[:, order[:-1]]).any(axis=0))
            self.num_compared += len(order)
            self.num_merged += len(order) - int(is_kept.sum())
        return labels.take(np.sort(order[is_kept]))

    @property
    def _has_equals(self) -> bool:
        """Whether labels with equal room were seen often enough to go on looking."""
        return self.num_compared < _MERGES_TRIED or self.num_merged > _FEWEST_MERGED * self.num_compared

    def _bounds(self, labels: _Labels) -> np.ndarray:
        """What each label will come to at least, by each price: (M, N)."""
        return labels.score_N + self.ahead_DM[labels.depth, :, None] - self.prices_MR @ labels.room_RN

    def _learn_from(self, labels: _Labels, limit: float) -> _Labels:
        """Learns the prices of a label in the middle, and drops the labels that they exclude."""
        ahead = self.free[labels.depth :]
        if not len(labels.score_N) or len(ahead) < _FEWEST_TO_LEARN_FOR or not self.num_rows:
            return labels
        bounds_MN = self._bounds(labels)
        self.times_best_M += np.bincount(bounds_MN.argmax(axis=0), minlength=len(self.prices_MR))
        middle = np.argsort(bounds_MN.max(axis=0))[len(labels.score_N) // 2]
        group_O = np.repeat(np.arange(len(ahead)), [len(group.columns_O) for group in ahead])
        score_O = np.concatenate([group.score_O for group in ahead])
        cost_OR = np.concatenate([group.cost_OR for group in ahead])
        solved = solve_lp(score_O, cost_OR, labels.room_RN[:, middle], group_O)
        if solved is None:
            return labels
        self._learn(solved[1])
        bound_N = labels.score_N + self.ahead_DM[labels.depth, -1] - solved[1] @ labels.room_RN
        return labels.take(bound_N < limit)

    def best_prices(self, most: int) -> np.ndarray:
        """The prices, the first left aside, that gave the best bound most often."""
        order = np.argsort(-self.times_best_M[1:], kind="stable")[:most]
        return self.prices_MR[1:][np.sort(order)]

    def _learn(self, price_R: np.ndarray) -> None:
        least = [float((group.score_O + group.cost_OR @ price_R).min()) for group in self.free]
        ahead_D = np.append(np.cumsum(least[::-1])[::-1], 0.0)
        self.prices_MR = np.vstack([self.prices_MR, price_R])
        self.times_best_M = np.append(self.times_best_M, 0)
        self.ahead_DM = np.column_stack([self.ahead_DM, ahead_D])

    def _finish(self, labels: _Labels, best: Found) -> Found:
        """The best label that is accepted, all groups chosen, or the best choice so far."""
        for index in np.argsort(labels.score_N):
            if not labels.score_N[index] < best.score:
                break
            columns_G = self._trace(labels, int(index))
            if self.accept(columns_G):
                return Found(columns_G=columns_G, score=float(labels.score_N[index]), bound=best.bound)
            self.is_rounding_decisive = True
        return best

    def _trace(self, labels: _Labels, index: int) -> np.ndarray:
        """The choice of every group that a label stands for."""
        columns_G = np.zeros(self.num_groups, dtype=np.int64)
        for group in self.fixed:
            columns_G[group.place] = group.columns_O[0]
        while labels.before is not None:
            group = self.free[labels.depth - 1]
            columns_G[group.place] = group.columns_O[labels.option_N[index]]
            index, labels = int(labels.before_N[index]), labels.before
        return columns_G
