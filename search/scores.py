"""The table of scores: one row per candidate and metric, what the parent loses, and how well that is known."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from blockwright.errors import InputError
from blockwright.files import new_file
from blockwright.spec import (
    Candidate,
    Format,
    Model,
    NoOp,
    Part,
    model_from_data,
    model_to_data,
    stored_as,
    variant_name,
)
from blockwright.statistics import Estimate
from blockwright.strict import from_data, to_data

_PARENT_KEY = b"blockwright.parent"
_EFFORT_KEY = b"blockwright.effort"
_INFLUENCE_KEY = b"blockwright.influence"
_FORMATS_KEY = b"blockwright.formats"
_OFFERED_KEY = b"blockwright.offered"
"""By metric, the keys of all candidates that were scored: what tells a row that was lost from one that never was."""
_COLUMNS = ["layer", "part", "name", "metric", "value", "low", "high", "num_windows", "candidate"]
_FORMAT_COLUMN = "format"
"""For readers of the table; tables written before it came say it within ``candidate`` alone, as this one does too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the whole model loses when one candidate replaces the parent's part; lower is better."""

    candidate: Candidate
    metric: str
    """``kl``: mean KL(parent ‖ child) in nats per token; ``lm_loss``: nats per token on the true next tokens, the
    child's less the parent's, which may be below 0; ``task``: what the right choice's −ln share grows by; or the name
    of a function of the user's, the child's value less the parent's."""
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What scoring took, in windows of one candidate each: those run, and those that all candidates would have had."""

    spent: int
    offered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """All scores of a parent's candidates."""

    parent: Model
    scores: tuple[Score, ...]
    effort: Effort | None = None
    """None where it is not known."""
    influence: tuple[float, ...] | None = None
    """Of each layer of the parent: one less the mean cosine between the hidden states that enter and leave it
    (ShortGPT, arXiv 2403.03853). None where it was not measured."""
    formats: tuple[tuple[Format, ...], ...] = ()
    """That each layer may be stored in; see `search/offered.py`."""

    def __post_init__(self) -> None:
        if self.influence is not None and len(self.influence) != len(self.parent.layers):
            raise ValueError(f"an influence for each of the {len(self.parent.layers)} layers")
        if self.formats and len(self.formats) != len(self.parent.layers):
            raise ValueError(f"formats for each of the {len(self.parent.layers)} layers, or for none")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that candidates were scored by, in the table's order."""
        return tuple(dict.fromkeys(score.metric for score in self.scores))

    def of_metric(self, name: str) -> tuple[Score, ...]:
        """All candidates' scores by one metric, in the table's order.

        Raises:
            InputError: nothing was scored by it.
        """
        found = tuple(score for score in self.scores if score.metric == name)
        if not found:
            raise InputError(
                "metric",
                got=repr(name),
                expected=f"one of the table's: {', '.join(self.metrics) or 'it has none'}",
                remedy="Name one of these, or score by this metric: see `blockwright score --help`.",
            )
        return found


def write_scores(table: ScoreTable, path: Path) -> None:
    """Writes the table as Parquet; what is about no candidate stands in the file's metadata."""
    frame = to_frame(table.scores)
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), _PARENT_KEY: json.dumps(model_to_data(table.parent)).encode()}
    metadata[_OFFERED_KEY] = json.dumps(_keys_by_metric(table.scores)).encode()
    if table.effort is not None:
        metadata[_EFFORT_KEY] = json.dumps(to_data(table.effort)).encode()
    if table.influence is not None:
        metadata[_INFLUENCE_KEY] = json.dumps(table.influence).encode()
    if table.formats:
        metadata[_FORMATS_KEY] = json.dumps(to_data(table.formats)).encode()
    with new_file(path) as temporary:
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary)


def to_frame(scores: Sequence[Score]) -> pd.DataFrame:
    """The scores as a data frame, a row each."""
    rows = [
        {
            "layer": score.candidate.layer,
            "part": score.candidate.part,
            "name": variant_name(score.candidate.variant),
            _FORMAT_COLUMN: format_of(score.candidate),
            "metric": score.metric,
            "value": score.estimate.value,
            "low": score.estimate.low,
            "high": score.estimate.high,
            "num_windows": score.estimate.num_values,
            "candidate": json.dumps(to_data(score.candidate)),
        }
        for score in scores
    ]
    return pd.DataFrame(rows, columns=[*_COLUMNS[:3], _FORMAT_COLUMN, *_COLUMNS[3:]])


def format_of(candidate: Candidate) -> str:
    """How a candidate's weights are stored; empty for a no-op, which has none."""
    return "" if isinstance(candidate.variant, NoOp) else str(candidate.variant.weights)


def read_scores(path: Path) -> ScoreTable:
    """Reads the table.

    Raises:
        InputError: the file is missing or broken, a row is missing, twice there or at odds with its candidate, or a
            score is missing, no number or endless.
    """
    try:
        arrow = pq.read_table(path)
        parent = model_from_data(json.loads(arrow.schema.metadata[_PARENT_KEY]), f"{path}: parent")
        frame = arrow.to_pandas()
        frame = frame[[*_COLUMNS, *([_FORMAT_COLUMN] if _FORMAT_COLUMN in frame else [])]]
        candidates = [from_data(Candidate, json.loads(text), f"{path}: candidate") for text in frame["candidate"]]
        effort = arrow.schema.metadata.get(_EFFORT_KEY)
        effort = None if effort is None else from_data(Effort, json.loads(effort), f"{path}: effort")
        offered = arrow.schema.metadata.get(_OFFERED_KEY)
        if offered is not None:
            offered = from_data(dict[str, tuple[str, ...]], json.loads(offered), f"{path}: offered")
        influence = arrow.schema.metadata.get(_INFLUENCE_KEY)
        if influence is not None:
            influence = from_data(tuple[float, ...], json.loads(influence), f"{path}: influence")
        formats = json.loads(arrow.schema.metadata.get(_FORMATS_KEY, b"[]"))
        formats = from_data(tuple[tuple[Format, ...], ...], formats, f"{path}: formats")
        empty = ScoreTable(parent=parent, scores=(), effort=effort, influence=influence, formats=formats)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            str(path),
            got=f"no table of scores ({str(error).splitlines()[0]})",
            expected="the Parquet file that `blockwright score` writes",
            remedy="Run `blockwright score` again.",
        ) from error
    rows = frame.to_dict("records")
    for candidate, row in zip(candidates, rows, strict=True):
        _check_agrees(candidate, row, path)
        _check_is_finite(row, path)
    table = replace(empty, scores=tuple(map(_score_of, candidates, rows)))
    _check_complete(table, offered, path)
    return table


def _key_of(candidate: Candidate) -> str:
    """A name that also tells formats apart."""
    return " in ".join(filter(None, (candidate.name, format_of(candidate))))


def _keys_by_metric(scores: Sequence[Score]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for score in scores:
        keys.setdefault(score.metric, []).append(_key_of(score.candidate))
    return keys


def _check_agrees(candidate: Candidate, row: dict, path: Path) -> None:
    """Refuses a row whose columns say another candidate than the one it carries."""
    told = {
        "layer": candidate.layer,
        "part": candidate.part,
        "name": variant_name(candidate.variant),
        _FORMAT_COLUMN: format_of(candidate),
    }
    for column, value in told.items():
        if row.get(column, value) != value:
            raise InputError(
                f"{path}: {column}",
                got=f"{row[column]!r} in the row of {_key_of(candidate)}",
                expected=f"{value!r}, as its candidate says",
                remedy="Run `blockwright score` again, or correct the column.",
            )


def _check_complete(table: ScoreTable, offered: Mapping[str, Sequence[str]] | None, path: Path) -> None:
    """Refuses a table with a row twice, or without one that there was.

    Tables from before what was offered was written down are judged by themselves: the parent's own is always offered,
    and layers whose own part is the same are offered the same.
    """
    found = _keys_by_metric(table.scores)
    for metric, keys in found.items():
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _wrong_rows(path, f"{keys.count(twice)} rows for {twice}, by {metric}")
    if offered is None:
        offered = {metric: _expected_keys(table, metric) for metric in found}
    for metric, keys in offered.items():
        has = set(found.get(metric, []))
        if lost := [key for key in keys if key not in has]:
            more = f", nor for {len(lost) - 1} more" if len(lost) > 1 else ""
            raise _wrong_rows(path, f"no row for {lost[0]}, by {metric}{more}")


def _expected_keys(table: ScoreTable, metric: str) -> list[str]:
    """What must have been offered, by what there is."""
    candidates = [score.candidate for score in table.of_metric(metric)]
    formats = dict.fromkeys(c.variant.weights for c in candidates if not isinstance(c.variant, NoOp))
    expected: dict[str, None] = {}
    parts: tuple[Part, ...] = ("mixer", "ffn")
    for layer, part in itertools.product(range(len(table.parent.layers)), parts):
        own = getattr(table.parent.layers[layer], part)
        alike = [c.variant for c in candidates if c.part == part and getattr(table.parent.layers[c.layer], part) == own]
        for variant in (*(stored_as(own, weights) for weights in formats), *alike):
            expected[_key_of(Candidate(layer=layer, part=part, variant=variant))] = None
    return list(expected)


def _wrong_rows(path: Path, got: str) -> InputError:
    return InputError(
        str(path),
        got=got,
        expected="one row for every candidate that was offered, and metric",
        remedy="Run `blockwright score` again: without this row the plan would be the best of something else.",
    )


def _check_is_finite(row: dict, path: Path) -> None:
    for column in ("value", "low", "high"):
        number = row[column]
        if not isinstance(number, int | float) or not math.isfinite(number):
            shown = "nothing" if number is None or number != number else repr(number)
            raise InputError(
                f"{path}: {column}",
                got=f"{shown} for {row['name']} as the {row['part']} of layer {row['layer']}, by {row['metric']}",
                expected="a finite number for every candidate and metric",
                remedy="Run `blockwright score` again.",
            )


def _score_of(candidate: Candidate, row: dict) -> Score:
    return Score(
        candidate=candidate,
        metric=row["metric"],
        estimate=Estimate(value=row["value"], low=row["low"], high=row["high"], num_values=row["num_windows"]),
    )
