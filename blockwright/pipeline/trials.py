"""Plans on trial: measured as wholes by successive halving, the worse half dropping out each time, and healed so.

All begin on a quarter of the windows that choose; the last ones are measured on all of these. The windows after them
choose nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from blockwright.errors import InputError
from blockwright.model.parent import Parent
from blockwright.pipeline.console import progress
from blockwright.pipeline.inputs import Text, windows_to_judge_by
from blockwright.pipeline.kept import Kept
from blockwright.search.problem import Choice
from blockwright.spec import Model
from blockwright.statistics import LEAST_VALUES
from blockwright.train.distill import GkdSettings
from blockwright.train.windows import Windows, batches

_FIRST_SHARE = 4


@dataclass(slots=True, kw_only=True)
class Trial:
    """A plan and what it lost on each window so far."""

    chosen: tuple[Choice, ...]
    spec: Model
    way: str
    """How it was found."""
    round: int
    kl: list[float] = field(default_factory=list)
    healed_kl: list[float] | None = None

    @property
    def mean(self) -> float:
        """Over the windows so far."""
        return float(np.mean(self.kl))


@dataclass(frozen=True, slots=True, kw_only=True)
class Healing:
    """How plans are distilled for a while."""

    windows: Windows
    tokens: int
    """For the last plan."""
    num_plans: int
    """To begin with."""
    batch_windows: int
    seed: int
    settings: GkdSettings


def windows_to_choose_by(parent: Parent, text: Text, *, length: int, num_tokens: int, seed: int) -> tuple[Windows, int]:
    """Windows in the order of the shuffled text, and how many of them choose; as many after them choose nothing.

    Args:
        parent: has the tokenizer.
        text: its training part is cut.
        length: tokens of a window.
        num_tokens: to choose by; where the text is short, half of what there is.
        seed: fixes the order of the text.

    Raises:
        InputError: there are too few for an interval in each half.
    """
    windows = windows_to_judge_by(parent, text.training, length=length, num_tokens=2 * num_tokens, seed=seed)
    num_windows = len(windows.ids_NT) // 2
    if num_windows < LEAST_VALUES:
        raise InputError(
            "text and tokens",
            got=f"{len(windows.ids_NT)} windows of {length} tokens, half of them to choose by",
            expected=f"at least {LEAST_VALUES} to choose by, and as many for the plan that was chosen",
            remedy="Give more text or tokens, or a shorter window.",
        )
    return windows, num_windows


def first_end(num_windows: int) -> int:
    """A quarter of the windows, on which all plans are measured."""
    return max(2, num_windows // _FIRST_SHARE)


def halve(kept: Kept, num_windows: int, trials: Sequence[Trial], always: Sequence[Trial]) -> None:
    """Measures plans, the worse half dropping out each time; `always` are measured on all windows."""
    left, start, end = list(trials), 0, first_end(num_windows)
    with progress("refine", len(left)) as advance:
        while left:
            losses = kept.losses([one.spec for one in left], start, end)
            for one, values in zip(left, losses, strict=True):
                one.kl += values
            if end == num_windows:
                break
            ranked = sorted(left, key=lambda one: one.mean)
            going_on = ranked[: max(1, (len(ranked) + 1) // 2)]
            going_on += [one for one in always if one not in going_on]
            advance(to=len(trials) - len(going_on))
            left, start, end = going_on, end, min(num_windows, 2 * end)


def finished(trials: Sequence[Trial], num_windows: int) -> list[Trial]:
    """Those that were measured on all windows."""
    return [one for one in trials if len(one.kl) == num_windows]


def heal(kept: Kept, num_windows: int, trials: Sequence[Trial], healing: Healing) -> Trial:
    """The plan that loses least after some distillation, by halving: each time twice the tokens for half the plans.

    Args:
        kept: heals and measures.
        num_windows: to measure healed plans on.
        trials: of plans measured on all windows; the first is tried whatever it lost.
        healing: how.
    """
    left = sorted(finished(trials, num_windows), key=lambda one: one.mean)[: healing.num_plans]
    left += [one for one in trials[:1] if one not in left]
    num_halvings = max(0, int(np.ceil(np.log2(len(left)))))
    window_tokens = healing.windows.ids_NT.shape[1]
    for halving in range(num_halvings + 1):
        tokens = healing.tokens // 2 ** (num_halvings - halving)
        num_steps = max(1, tokens // (healing.batch_windows * window_tokens))
        steps = batches(healing.windows, healing.batch_windows, num_steps, healing.seed)
        for one in left:
            one.healed_kl = kept.healed(one.spec, steps, healing.settings, num_windows)
        left = sorted(left, key=lambda one: np.mean(one.healed_kl or [np.inf]))[: max(1, (len(left) + 1) // 2)]
    return left[0]
