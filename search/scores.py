"""The table of scores: one row per candidate, what the parent loses by it, and how well that is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from blockwright.errors import InputError
from blockwright.files import new_file
from blockwright.spec import Candidate, Model, model_from_data, model_to_data, variant_name
from blockwright.statistics import Estimate
from blockwright.strict import from_data, to_data

_PARENT_KEY = b"blockwright.parent"
_COLUMNS = ["layer", "part", "name", "metric", "value", "low", "high", "num_windows", "candidate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the whole model loses when one candidate replaces the parent's part; lower is better."""

    candidate: Candidate
    metric: str
    """``kl``: mean KL(parent ‖ child) in nats per token."""
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """All scores of a parent's candidates."""

    parent: Model
    scores: tuple[Score, ...]


def write_scores(table: ScoreTable, path: Path) -> None:
    """Writes the table as Parquet; the parent's spec stands in the file's metadata."""
    frame = to_frame(table.scores)
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), _PARENT_KEY: json.dumps(model_to_data(table.parent)).encode()}
    with new_file(path) as temporary:
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary)


def to_frame(scores: Sequence[Score]) -> pd.DataFrame:
    """The scores as a data frame, a row each."""
    rows = [
        {
            "layer": score.candidate.layer,
            "part": score.candidate.part,
            "name": variant_name(score.candidate.variant),
            "metric": score.metric,
            "value": score.estimate.value,
            "low": score.estimate.low,
            "high": score.estimate.high,
            "num_windows": score.estimate.num_values,
            "candidate": json.dumps(to_data(score.candidate)),
        }
        for score in scores
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def read_scores(path: Path) -> ScoreTable:
    """Reads the table.

    Raises:
        InputError: the file is missing or broken, or a score is missing or no number.
    """
    try:
        arrow = pq.read_table(path)
        parent = model_from_data(json.loads(arrow.schema.metadata[_PARENT_KEY]), f"{path}: parent")
        frame = arrow.to_pandas()[_COLUMNS]
        candidates = [from_data(Candidate, json.loads(text), f"{path}: candidate") for text in frame["candidate"]]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            str(path),
            got=f"no table of scores ({str(error).splitlines()[0]})",
            expected="the Parquet file that `blockwright score` writes",
            remedy="Run `blockwright score` again.",
        ) from error
    for column in ("value", "low", "high"):
        if frame[column].isna().any():
            row = frame[frame[column].isna()].iloc[0]
            raise InputError(
                f"{path}: {column}",
                got=f"nothing for {row['name']} as the {row['part']} of layer {row['layer']}",
                expected="a number for every candidate",
                remedy="Run `blockwright score` again.",
            )
    rows = frame.to_dict("records")
    return ScoreTable(parent=parent, scores=tuple(map(_score_of, candidates, rows)))


def _score_of(candidate: Candidate, row: dict) -> Score:
    return Score(
        candidate=candidate,
        metric=row["metric"],
        estimate=Estimate(value=row["value"], low=row["low"], high=row["high"], num_values=row["num_windows"]),
    )
