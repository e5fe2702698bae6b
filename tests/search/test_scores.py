"""The table of scores as a file."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blockwright.errors import InputError
from blockwright.search.scores import Effort, Score, ScoreTable, read_scores, write_scores
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import Attention, Block, Candidate, GatedFFN, Model, NoOp, Rope, Window, parse_format
from blockwright.statistics import Estimate

PARENT = Model(
    family="mistral",
    vocab_size=96,
    hidden_size=64,
    num_heads=4,
    head_dim=16,
    max_positions=256,
    norm_eps=1e-6,
    rope=Rope(theta=1e6, scaling="linear", parameters=(("factor", 2.0),)),
    activation="silu",
    has_tied_embeddings=False,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=4, reach=Window(num_tokens=32)), ffn=GatedFFN(width=128)),) * 2,
)
TABLE = ScoreTable(
    parent=PARENT,
    scores=tuple(
        Score(
            candidate=candidate,
            metric="kl",
            estimate=Estimate(value=index / 7, low=index / 8, high=index / 6, num_values=16),
        )
        for index, candidate in enumerate(candidates(PARENT, SpaceSettings()))
    ),
)


def _rewrite(path: Path, frame: pd.DataFrame) -> None:
    metadata = pq.read_table(path).schema.metadata
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(metadata), path)


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_scores(TABLE, tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet") == TABLE


def test_other_tools_read_the_table_as_it_is(tmp_path: Path) -> None:
    write_scores(TABLE, tmp_path / "scores.parquet")
    frame = pd.read_parquet(tmp_path / "scores.parquet")
    assert frame["name"].tolist()[:3] == ["attention-kv4-w32", "attention-kv2-w32", "attention-kv1-w32"]
    assert frame["value"].tolist() == [score.estimate.value for score in TABLE.scores]


@pytest.mark.parametrize(("number", "shown"), [(math.nan, "nothing"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("column", ["value", "low", "high"])
def test_a_score_that_is_no_finite_number_is_named(tmp_path: Path, column: str, number: float, shown: str) -> None:
    estimate = replace(TABLE.scores[1].estimate, **{column: number})
    scores = (TABLE.scores[0], replace(TABLE.scores[1], estimate=estimate), *TABLE.scores[2:])
    write_scores(replace(TABLE, scores=scores), tmp_path / "scores.parquet")
    named = f"{column}: got {shown} for attention-kv2-w32 as the mixer of layer 0, by kl"
    with pytest.raises(InputError, match=named):
        read_scores(tmp_path / "scores.parquet")


def test_scores_of_several_metrics_and_formats_come_back_and_are_told_apart(tmp_path: Path) -> None:
    stored = [
        Candidate(layer=1, part="ffn", variant=GatedFFN(width=64, weights=parse_format(text)))
        for text in ("fp32", "int4-g32", "int4-g128")
    ]
    offered = [*stored, Candidate(layer=1, part="ffn", variant=NoOp())]
    estimate = Estimate(value=-0.5, low=-1.0, high=0.25, num_values=3)
    scores = tuple(
        Score(candidate=candidate, metric=metric, estimate=estimate)
        for candidate in offered
        for metric in ("lm_loss", "kl")
    )
    table = ScoreTable(parent=PARENT, scores=scores, effort=Effort(spent=17, offered=48))
    write_scores(table, tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet") == table
    assert table.metrics == ("lm_loss", "kl")
    assert [score.candidate for score in table.of_metric("kl")] == offered
    assert {score.metric for score in table.of_metric("kl")} == {"kl"}
    formats = pd.read_parquet(tmp_path / "scores.parquet")["format"]
    assert formats.tolist()[::2] == ["fp32", "int4-g32", "int4-g128", ""]


def test_a_metric_that_the_table_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(InputError, match="metric: got 'task'; expected one of the table's: kl"):
        TABLE.of_metric("task")


def test_a_table_from_before_formats_and_effort_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(replace(TABLE, effort=Effort(spent=1, offered=2)), path)
    frame, metadata = pd.read_parquet(path), pq.read_table(path).schema.metadata
    kept = {key: value for key, value in metadata.items() if key == b"blockwright.parent"}
    arrow = pa.Table.from_pandas(frame.drop(columns="format"), preserve_index=False)
    pq.write_table(arrow.replace_schema_metadata(kept), path)
    assert read_scores(path) == TABLE


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table of scores"):
        read_scores(tmp_path / "scores.parquet")


@pytest.mark.parametrize("content", [b"", b"layer,part\n0,ffn\n", b"PAR1 and no more PAR1"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.parquet").write_bytes(content)
    with pytest.raises(InputError, match="no table of scores"):
        read_scores(tmp_path / "scores.parquet")


def test_a_table_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(TABLE, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="no table of scores"):
        read_scores(path)


def test_a_table_without_its_parent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(TABLE, path)
    pd.read_parquet(path).to_parquet(path)
    with pytest.raises(InputError, match="no table of scores"):
        read_scores(path)


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(TABLE, path)
    _rewrite(path, pd.read_parquet(path).drop(columns="high"))
    with pytest.raises(InputError, match="high"):
        read_scores(path)


@pytest.mark.parametrize("text", ["no JSON", '{"layer": 0}', "7"])
def test_a_candidate_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(TABLE, path)
    frame = pd.read_parquet(path)
    frame.loc[1, "candidate"] = text
    _rewrite(path, frame)
    with pytest.raises(InputError, match=r"scores\.parquet"):
        read_scores(path)


def _without(path: Path, is_dropped: Callable[[pd.DataFrame], np.ndarray], has_record: bool) -> None:
    """Drops rows of the file; with or without what was written down of the rows that there were."""
    arrow = pq.read_table(path)
    frame, metadata = arrow.to_pandas(), dict(arrow.schema.metadata)
    if not has_record:
        del metadata[b"blockwright.offered"]
    kept = pa.Table.from_pandas(frame[~np.asarray(is_dropped(frame))], preserve_index=False)
    pq.write_table(kept.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize(
    ("is_dropped", "named"),
    [
        (lambda frame: frame["layer"] == 1, "no row for layer-01-mixer-attention-kv4-w32 in fp32, by kl, nor for "),
        (lambda frame: (frame["part"] == "ffn") & (frame["layer"] == 0), "no row for layer-00-ffn-ffn-128 in fp32"),
        (lambda frame: frame["name"] == "attention-kv4-w32", "no row for layer-00-mixer-attention-kv4-w32 in fp32"),
        (lambda frame: frame.index == 1, "no row for layer-00-mixer-attention-kv2-w32 in fp32, by kl; expected"),
    ],
)
def test_a_row_that_was_lost_is_named(
    is_dropped: Callable[[pd.DataFrame], np.ndarray], named: str, has_record: bool, tmp_path: Path
) -> None:
    write_scores(TABLE, tmp_path / "scores.parquet")
    _without(tmp_path / "scores.parquet", is_dropped, has_record)
    with pytest.raises(InputError, match=named):
        read_scores(tmp_path / "scores.parquet")


def test_what_was_never_offered_is_not_missed(tmp_path: Path) -> None:
    table = replace(TABLE, scores=TABLE.scores[1:])
    write_scores(table, tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet") == table


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_scores(replace(TABLE, scores=(*TABLE.scores, TABLE.scores[3])), tmp_path / "scores.parquet")
    with pytest.raises(InputError, match="2 rows for layer-00-mixer-linear"):
        read_scores(tmp_path / "scores.parquet")


@pytest.mark.parametrize(
    ("column", "value"), [("layer", 1), ("part", "ffn"), ("name", "attention-kv1-w32"), ("format", "int4-g32")]
)
def test_columns_at_odds_with_their_candidate_are_refused(column: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(TABLE, path)
    frame = pd.read_parquet(path)
    frame.loc[1, column] = value
    _rewrite(path, frame)
    with pytest.raises(InputError, match=f"{column}: got {value!r} in the row of layer-00-mixer-attention-kv2-w32"):
        read_scores(path)
