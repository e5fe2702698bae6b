"""Measures cases round after round into a folder of unfinished work, and goes on after a kill.

First every case is measured once, then, as long as that helps, those whose uncertainty matters most for whole models
(see `profiler/adaptive.py`). Each measurement is a file of its samples, so that rounds can be joined and nothing is
lost. A case that fails is told and does not stop the others. Where the clock has dropped during a case, or hardly a
sample was undisturbed, its samples are marked, and count only if it never came out better.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import assert_never

from blockwright.compile.runtime import ORT_ERRORS
from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.conditions import clock_hz
from blockwright.hw_profiles.profile import MemoryRow
from blockwright.hw_profiles.provenance import StopReason
from blockwright.hw_profiles.table import Row
from blockwright.pipeline.console import progress, say
from blockwright.profiler.adaptive import Uncertainty, is_gain, next_cases, uncertainty_of
from blockwright.profiler.clock import Samples, timing_of
from blockwright.profiler.measure import (
    Case,
    MemoryCase,
    PartCase,
    TimedCase,
    WholesCase,
    sample_together,
)
from blockwright.profiler.operator_grid import GridCase
from blockwright.profiler.together import measured_together
from blockwright.strict import from_data, to_data

_MOST_TRIES = 3
"""Of a case that is disturbed each time."""
_LEAST_CLOCK = 0.9
"""Of the fastest clock seen: below, the machine was slowed down, by heat or by its power."""
_MOST_VAIN_ROUNDS = 2
_FAILURES = (InputError, MemoryError, OSError, RuntimeError, *ORT_ERRORS)
"""What measuring a case may raise on a machine that cannot do it."""


AnyCase = Case | GridCase


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop measuring again what was measured."""

    target: float
    """How well a typical child's time is to be known, as a share of it."""
    again_s: float
    """How long to go on after the first round."""
    total_s: float
    """How long in all; the first round is finished anyway."""
    first_s: float = math.inf
    """How long the first round may take; what it does not come to is left out."""


@dataclass(slots=True, kw_only=True)
class Measurements:
    """What was measured so far, by the names of cases."""

    numbers: dict[str, int]
    """Of all cases."""
    rounds: dict[str, list[tuple[Samples, ...]]] = field(default_factory=dict)
    memory: dict[str, tuple[MemoryRow, ...]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    spent_s: float = 0.0
    stopped_by: StopReason | None = None
    precision: float | None = None

    @property
    def disturbed(self) -> set[str]:
        """Cases none of whose rounds was undisturbed."""
        return {name for name, rounds in self.rounds.items() if all(_is_disturbed(each) for each in rounds)}

    @property
    def reference_s(self) -> float | None:
        """The reference kernel at its best, over all rounds."""
        seen = (each.reference_s for rounds in self.rounds.values() for samples in rounds for each in samples)
        return min((each for each in seen if each is not None), default=None)

    def rows(self, cases: Iterable[AnyCase], reference_s: float | None) -> list[Row]:
        """What a profile holds of the cases, their times scaled to one time of the reference kernel."""
        found: list[Row] = []
        for case in cases:
            if isinstance(case, MemoryCase):
                found += self.memory.get(case.name, ())
            elif case.name in self.rounds:
                found += case.rows([timing_of(one, reference_s) for one in zip(*self.rounds[case.name], strict=True)])
        return found

    def uncertainty(self, cases: Iterable[TimedCase]) -> Uncertainty:
        """How well whole models are known from this."""
        best_s, timed = self.reference_s, []
        for case in cases:
            timed.append((case, [timing_of(one, best_s) for one in zip(*self.rounds[case.name], strict=True)]))
        return uncertainty_of(timed)


def num_runs(case: Case) -> int:
    """How many things a case times at once."""
    match case:
        case PartCase():
            return 2
        case WholesCase(models=models):
            return len(models)
        case MemoryCase():
            return 0
        case _:
            assert_never(case)


def measure_all(cases: Sequence[AnyCase], work: Path, limits: Limits) -> Measurements:
    """Measures all cases once, then the ones that matter most again.

    Args:
        cases: what to measure; their names are those of the run that is gone on with.
        work: the folder for unfinished work.
        limits: when to stop.

    Raises:
        InputError: every single case failed; names the first.
    """
    measured, watch = _read(cases, work), _ClockWatch()
    first = [case for case in cases if case.name not in measured.rounds and case.name not in measured.memory]
    with progress("profile", len(cases), len(cases) - len(first)) as advance:
        for group in measured_together(first):
            if measured.spent_s < limits.first_s:
                _measure(group, work, measured, watch)
            else:
                measured.stopped_by = "time"
            for case in group:
                advance(case.name)
    if measured.failures and not measured.rounds:
        name, why = next(iter(measured.failures.items()))
        raise InputError(
            "profile", got=f"all failed, first {name}: {why}", expected="something that runs here", remedy="See why."
        )
    _measure_again(cases, work, measured, limits, watch)
    return measured


def _measure_again(
    cases: Sequence[AnyCase], work: Path, measured: Measurements, limits: Limits, watch: "_ClockWatch"
) -> None:
    """Rounds over what matters most, until it is known well enough, time is up, or it does not help."""
    timed = [case for case in cases if isinstance(case, TimedCase) and case.name in measured.rounds]
    until_s = min(limits.total_s, measured.spent_s + limits.again_s)
    num_vain, known = 0, measured.uncertainty(timed)
    if not timed:
        return
    while True:
        disturbed = {name for name in measured.disturbed if len(measured.rounds[name]) < _MOST_TRIES}
        matters = {case.name for case in next_cases(timed, known, limits.target)}
        again = [case for case in timed if case.name in matters | disturbed]
        if not again or measured.spent_s >= until_s or num_vain >= _MOST_VAIN_ROUNDS:
            measured.stopped_by = "precision" if not again else "time" if measured.spent_s >= until_s else "no_gain"
            break
        with progress(f"again, known to {100 * known.worst:.1f} %", len(again)) as advance:
            for group in measured_together(again):
                if measured.spent_s < until_s:
                    _measure(group, work, measured, watch)
                for case in group:
                    advance(case.name)
        before, known = known, measured.uncertainty(timed)
        num_vain = 0 if is_gain(before, known) else num_vain + 1
    measured.precision = known.worst if known.of_groups else None


def _measure(group: Sequence[AnyCase], work: Path, measured: Measurements, watch: "_ClockWatch") -> None:
    """One more round of cases that are timed in turn, each kept in a file; one by one where that fails."""
    started, case = monotonic(), group[0]
    try:
        if isinstance(case, MemoryCase):
            rows, samples = tuple(case.measure()), [()]
        else:
            rows, samples = (), [watch.marked(each) for each in _sampled(group)]
    except _FAILURES as error:
        if len(group) > 1:
            for one in group:
                _measure([one], work, measured, watch)
        elif case.name not in measured.rounds:
            measured.failures[case.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            say(f"failed    {case.name}: {measured.failures[case.name]}")
        return
    took_s = (monotonic() - started) / len(group)
    for one, own in zip(group, samples, strict=True):
        number = len(measured.rounds.get(one.name, ()))
        path = work / f"case-{measured.numbers[one.name]:04d}-round-{number:02d}.json"
        write_json(path, {"name": one.name, "took_s": took_s, "samples": to_data(own), "memory": to_data(rows)})
        _add(measured, one.name, own, rows, took_s)


def _sampled(group: Sequence[AnyCase]) -> list[list[Samples]]:
    parts = [case for case in group if isinstance(case, PartCase)]
    if parts:
        return sample_together(parts)
    (case,) = group
    assert not isinstance(case, MemoryCase | PartCase)
    return [case.sample()]


def _read(cases: Sequence[AnyCase], work: Path) -> Measurements:
    """What an earlier run measured."""
    measured = Measurements(numbers={case.name: number for number, case in enumerate(cases)})
    for path in sorted(work.glob("case-*.json")):
        data = read_json(path)
        if data["name"] in measured.numbers:
            samples = from_data(tuple[Samples, ...], data["samples"], str(path))
            memory = from_data(tuple[MemoryRow, ...], data["memory"], str(path))
            _add(measured, data["name"], samples, memory, data["took_s"])
    return measured


def _add(
    measured: Measurements, name: str, samples: tuple[Samples, ...], memory: tuple[MemoryRow, ...], took_s: float
) -> None:
    if samples:
        measured.rounds.setdefault(name, []).append(samples)
    else:
        measured.memory[name] = memory
    measured.spent_s += took_s


class _ClockWatch:
    """Marks what was measured while the clock was far below the fastest that was seen, where the system tells it."""

    def __init__(self) -> None:
        self._fastest_hz = 0.0

    def marked(self, samples: Sequence[Samples]) -> tuple[Samples, ...]:
        """The samples that were just taken; as disturbed where the clock has dropped."""
        now_hz = clock_hz()
        self._fastest_hz = max(self._fastest_hz, now_hz or 0.0)
        if now_hz is None or now_hz >= _LEAST_CLOCK * self._fastest_hz:
            return tuple(samples)
        return tuple(replace(each, is_disturbed=True) for each in samples)


def _is_disturbed(samples: Sequence[Samples]) -> bool:
    return any(each.is_disturbed for each in samples)
