"""Windows spent on candidates round by round, kept batch by batch, so that a killed run goes on from the last batch.

In a race all candidates are scored on the first eighth of the windows, then those between which the plan is still
undecided on as many again, then on twice as many, until all windows are spent. Without one there is a single round.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.pipeline.candidates import is_own, key_of
from blockwright.pipeline.console import progress, say
from blockwright.search.metrics import JudgeOf, TextMetrics, text_judge
from blockwright.search.scores import Effort, Score, ScoreTable, format_of
from blockwright.search.scoring import influence_of, replace_one
from blockwright.search.task import Question, batches_of, ids_of, task_judge
from blockwright.spec import Candidate, Format, Model, variant_name
from blockwright.statistics import LEAST_VALUES, Estimate, estimate_mean
from blockwright.train.windows import Windows

_BATCH_WINDOWS = 8
_FIRST_SHARE, _FIRST_WINDOWS = 8, 4
"""A race begins with one window in so many, but so many at least: of fewer no interval is any use."""

Undecided = Callable[[ScoreTable], Collection[Candidate]]
"""From what is known so far to the candidates, as they stand in the table, that more windows are to be spent on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardsticks:
    """What candidates are held against."""

    metrics: tuple[str, ...]
    """Their names, in the table's order."""
    of_windows: TextMetrics
    questions: tuple[Question, ...] = ()
    """For the metric ``task``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Who is scored on what."""

    parent: Model
    model: PreTrainedModel
    candidates: tuple[Candidate, ...]
    """All rows of the table, the parent's own parts among them."""
    layers: Mapping[Candidate, nn.Module]
    """Those to run, with the parent's layer that each stands in."""
    yardsticks: Yardsticks
    windows: Windows
    undecided: Undecided | None
    """Chooses after each round who goes on; None where all candidates are scored on all windows."""
    run: "Run | None" = None
    """Runs candidates on a batch somewhere else; None for here."""
    formats: tuple[tuple[Format, ...], ...] = ()
    """That each layer may be stored in; see `search/offered.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBatch:
    """Windows or questions that go through the model at once."""

    name: str
    ids_BT: Tensor
    groups: list[int]
    """For each value which others it is not independent of: those of windows of one document."""
    questions: tuple[Question, ...] = ()
    """Which the ids are, padded; none where they are windows of text."""

    def judge_of(self, yardsticks: Yardsticks) -> JudgeOf:
        """Makes what judges the states that leave the last layer."""
        if self.questions:
            return partial(task_judge, questions=self.questions)
        return partial(text_judge, ids_BT=self.ids_BT, metrics=yardsticks.of_windows)


Run = Callable[[Sequence[Candidate], ScoreBatch, Callable[[], None]], dict[str, Any]]
"""As `run_batch`, which knows the model and the yardsticks: candidates, a batch, and what to call after each."""


@dataclass(slots=True, kw_only=True)
class _Found:
    """One candidate's values by one metric, and the estimate from them."""

    values: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    estimate: Estimate | None = None

    def add(self, values: list[float], groups: list[int]) -> None:
        """Takes the values of another batch."""
        self.values += values
        self.groups += groups
        self.estimate = None


@dataclass(slots=True, kw_only=True)
class _Influence:
    """Of each layer, summed over the tokens of the windows so far."""

    sums: list[float] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, sums: list[float], num_tokens: int) -> None:
        """Takes the sums of another batch."""
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(sums), sums, strict=True)]
        self.num_tokens += num_tokens

    @property
    def means(self) -> tuple[float, ...] | None:
        """None where no window was run."""
        return tuple(each / self.num_tokens for each in self.sums) if self.num_tokens else None


def score_in_rounds(race: Race, work: Path) -> ScoreTable:
    """Scores the candidates.

    Args:
        race: who is scored on what.
        work: the folder for what is found meanwhile; what stands there from before is not found again.

    Raises:
        InputError: a score is no finite number, or a function of the user's gives none.
    """
    num_windows = len(race.windows.ids_NT)
    ends = [num_windows] if race.undecided is None else round_ends(num_windows)
    found = {(key_of(c), metric): _Found() for c in race.layers for metric in race.yardsticks.metrics}
    influence, running, spent, start = _Influence(), list(race.layers), 0, 0
    for index, end in enumerate(ends):
        if not running:
            break
        _run_round(race, running, list(_batches(race, index, start, end)), found, influence, work)
        spent += len(running) * (end - start)
        start = end
        if race.undecided is not None and end < num_windows:
            keys = _next_round(race, race.undecided, found, work / f"round-{index + 1}.json")
            running = [candidate for candidate in race.layers if key_of(candidate) in keys]
    effort = Effort(spent=spent, offered=len(race.layers) * num_windows)
    if race.undecided is not None and effort.offered:
        share = 100 * effort.spent / effort.offered
        say(f"score     {effort.spent} windows of a candidate run of {effort.offered} ({share:.0f} %)")
    return replace(_table(race, found), effort=effort, influence=influence.means)


def round_ends(num_windows: int) -> list[int]:
    """After how many windows each round of a race ends: an eighth of them, four at least, then twice as many."""
    ends = [min(num_windows, max(_FIRST_WINDOWS, math.ceil(num_windows / _FIRST_SHARE)))]
    while ends[-1] < num_windows:
        ends.append(min(num_windows, 2 * ends[-1]))
    return ends


def _next_round(race: Race, undecided: Undecided, found: Mapping[tuple[str, str], _Found], path: Path) -> set[str]:
    """The keys of who goes on; kept, for whoever chooses need not choose the same twice."""
    if not path.exists():
        write_json(path, sorted(key_of(candidate) for candidate in undecided(_table(race, found))))
    return set(read_json(path))


def _table(race: Race, found: Mapping[tuple[str, str], _Found]) -> ScoreTable:
    return ScoreTable(parent=race.parent, scores=_scores(race, found), formats=race.formats)


def _run_round(
    race: Race,
    running: Sequence[Candidate],
    batches: Sequence[ScoreBatch],
    found: dict[tuple[str, str], _Found],
    influence: _Influence,
    work: Path,
) -> None:
    """Runs candidates on the batches that are not done yet, and adds what was found on all."""
    paths = [work / f"{batch.name}.json" for batch in batches]
    done = sum(path.exists() for path in paths) * len(running)
    with progress("score", len(batches) * len(running), done=done) as advance:
        for batch, path in zip(batches, paths, strict=True):
            if not path.exists():
                run = partial(_run_here, race) if race.run is None else race.run
                write_json(path, run(running, batch, advance))
            data = read_json(path)
            for key, by_metric in data["values"].items():
                for metric, numbers in by_metric.items():
                    found[key, metric].add(numbers, batch.groups)
            if not batch.questions:
                influence.add(data["influence"], batch.ids_BT.numel())


def run_batch(
    model: PreTrainedModel,
    layers: Mapping[Candidate, nn.Module],
    batch: ScoreBatch,
    yardsticks: Yardsticks,
    on_candidate: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What is found on a batch: each candidate's values, and each layer's influence summed over the tokens.

    Raises:
        InputError: a value is no finite number, or a function of the user's gives none.
    """
    sums: list[float] = []

    def keep(states: Sequence[Tensor]) -> None:
        sums.extend(influence_of(states))

    judge_of = batch.judge_of(yardsticks)
    values = replace_one(model, layers, batch.ids_BT, judge_of, on_candidate=on_candidate, on_states=keep)
    for candidate, by_metric in values.items():
        _check_are_finite(candidate, by_metric)
    by_key = {key_of(c): {m: v.tolist() for m, v in by.items()} for c, by in values.items()}
    return {"values": by_key, "influence": sums}


def _run_here(
    race: Race, running: Sequence[Candidate], batch: ScoreBatch, on_candidate: Callable[[], None]
) -> dict[str, Any]:
    layers = {candidate: race.layers[candidate] for candidate in running}
    return run_batch(race.model, layers, batch, race.yardsticks, on_candidate)


def _batches(race: Race, index: int, start: int, end: int) -> Iterator[ScoreBatch]:
    """What a round is run on: windows from `start` to `end`, and as great a share of the questions."""
    ids_NT, yardsticks = race.windows.ids_NT, race.yardsticks
    for first in range(start, end, _BATCH_WINDOWS):
        part = slice(first, min(end, first + _BATCH_WINDOWS))
        yield ScoreBatch(
            name=f"windows-{index}-{first:05d}",
            ids_BT=ids_NT[part],
            groups=race.windows.document_N[part].tolist(),
        )
    num_questions = len(yardsticks.questions)
    first, last = (_num_asked(num_questions, num / len(ids_NT)) for num in (start, end))
    for questions in batches_of(yardsticks.questions[first:last], _BATCH_WINDOWS * ids_NT.shape[1]):
        yield ScoreBatch(
            name=f"questions-{index}-{first:05d}",
            ids_BT=ids_of(questions),
            groups=list(range(first, first + len(questions))),
            questions=tuple(questions),
        )
        first += len(questions)


def _num_asked(num_questions: int, share: float) -> int:
    """How many questions have been asked when a share of the windows is spent; enough for an interval at once."""
    return max(min(LEAST_VALUES, num_questions), math.floor(share * num_questions)) if share else 0


def _check_are_finite(candidate: Candidate, values: Mapping[str, Tensor]) -> None:
    for metric, values_B in values.items():
        if not values_B.isfinite().all():
            shown = next(value for value in values_B.tolist() if not math.isfinite(value))
            name = " ".join(filter(None, (variant_name(candidate.variant), format_of(candidate))))
            raise InputError(
                f"score of {name} as the {candidate.part} of layer {candidate.layer}, by {metric}",
                got=shown,
                expected="a finite number",
                remedy="Its weights are broken, or the metric is: build the library again with a lower learning rate, "
                "or correct the metric.",
            )


def _scores(race: Race, found: Mapping[tuple[str, str], _Found]) -> tuple[Score, ...]:
    return tuple(
        Score(candidate=candidate, metric=metric, estimate=_estimate_of(race, candidate, metric, found))
        for candidate in race.candidates
        for metric in race.yardsticks.metrics
    )


def _estimate_of(race: Race, candidate: Candidate, metric: str, found: Mapping[tuple[str, str], _Found]) -> Estimate:
    if is_own(candidate, race.parent):  # it changes nothing, so what it loses is 0 exactly
        return Estimate(value=0.0, low=0.0, high=0.0, num_values=0)
    one = found[key_of(candidate), metric]
    if one.estimate is None:
        one.estimate = estimate_mean(np.array(one.values), np.array(one.groups))
    return one.estimate
