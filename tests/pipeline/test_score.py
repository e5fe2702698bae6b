"""The score stage: formats, metrics together, races, and going on after it was killed."""

import copy
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blockwright.cli.main import main
from blockwright.compile.blocked import rounded
from blockwright.errors import InputError
from blockwright.library import read_library
from blockwright.model.parent import Parent, load_model, open_parent
from blockwright.pipeline import rounds
from blockwright.pipeline.candidates import candidate_layers, key_of
from blockwright.pipeline.inputs import read_text, windows_of
from blockwright.pipeline.library import LibraryOrder, build_library
from blockwright.pipeline.rounds import round_ends
from blockwright.pipeline.score import ScoreOrder, score_library
from blockwright.search.scores import Score, ScoreTable, format_of, read_scores
from blockwright.search.scoring import reference_kl
from blockwright.search.space import SpaceSettings
from blockwright.spec import FP32, Candidate, NoOp, parse_format, stored_as

INT4 = parse_format("int4")
ITEM = {"prompt": "the cat sat on", "choices": [" a mat", " owl"], "answer": 0}


@pytest.fixture(scope="module")
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, parent: Parent, small_text: Path) -> Path:
    folder = tmp_path_factory.mktemp("score") / "library"
    space = SpaceSettings(kv_head_shares=(0.5,), ffn_width_shares=(0.5,))
    order = LibraryOrder(
        space=space, text=str(small_text), window_tokens=32, seed=0, tokens=512, batch_windows=4, learning_rate=1e-3
    )
    build_library(parent, order, folder)
    return folder


@pytest.fixture
def order(small_text: Path) -> ScoreOrder:
    """Of 32 windows, which a race spends in rounds of 4, 4, 8 and 16."""
    return ScoreOrder(text=str(small_text), window_tokens=16, tokens=32 * 16, seed=0)


def _values(table: ScoreTable, metric: str = "kl") -> dict[Candidate, float]:
    return {score.candidate: score.estimate.value for score in table.of_metric(metric)}


def _half(table: ScoreTable) -> list[Candidate]:
    """The better half of who is still in."""
    last = max(score.estimate.num_values for score in table.scores)
    still = [score for score in table.scores if score.estimate.num_values == last]
    return [score.candidate for score in sorted(still, key=_value)[: len(still) // 2]]


def _value(score: Score) -> float:
    return score.estimate.value


@pytest.fixture
def racing(order: ScoreOrder, monkeypatch: pytest.MonkeyPatch) -> ScoreOrder:
    # Every window a unit, so that an estimate tells how many windows it rests on.
    real = rounds.estimate_mean
    monkeypatch.setattr(rounds, "estimate_mean", lambda values, groups: real(values))
    return replace(order, race={"keep": "half"})


def test_a_format_is_scored_as_a_model_of_rounded_weights(
    parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    plain = score_library(parent, library, order, tmp_path / "fp32.parquet")
    table = score_library(parent, library, replace(order, formats=("fp32", "int4")), tmp_path / "scores.parquet")
    values, model = _values(table), load_model(parent)
    assert {c: v for c, v in values.items() if format_of(c) != "int4-g32"} == pytest.approx(_values(plain), rel=1e-5)
    assert list(values) == [c for own in read_library(library).candidates for c in _stored(own)]
    windows = _windows_of(parent, order)
    for candidate in values:
        if format_of(candidate) != "int4-g32":
            continue
        layer = _rounded_layer(parent, library, candidate)
        kl_B = torch.cat([reference_kl(model, candidate, layer, ids_BT) for ids_BT in windows.split(8)])
        assert values[candidate] == pytest.approx(kl_B.mean().item(), rel=1e-5, abs=1e-7)
        assert values[candidate] > 0


def _stored(candidate: Candidate) -> list[Candidate]:
    in_formats = [replace(candidate, variant=stored_as(candidate.variant, weights)) for weights in (FP32, INT4)]
    return in_formats[:1] if isinstance(candidate.variant, NoOp) else in_formats


def _windows_of(parent: Parent, order: ScoreOrder) -> Tensor:
    training = read_text(order.text).training
    return windows_of(parent, training, length=16, num_tokens=order.tokens, seed=order.seed + 1).ids_NT


def _rounded_layer(parent: Parent, library: Path, candidate: Candidate) -> nn.Module:
    """The fp32 candidate's layer, or the parent's own, with its part's matrices rounded in place."""
    model, index = load_model(parent), read_library(library)
    plain = replace(candidate, variant=stored_as(candidate.variant, FP32))
    layers = candidate_layers(model, index, library, [plain])
    layer: Any = copy.deepcopy(layers.get(plain, model.model.layers[candidate.layer]))
    part = layer.self_attn if candidate.part == "mixer" else layer.mlp
    for parameter in part.parameters():
        parameter.data = torch.from_numpy(np.ascontiguousarray(rounded(parameter.data.numpy().T, INT4).T))
    return layer


def test_the_parents_own_part_loses_nothing_in_fp32_and_something_in_int4(
    parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    table = score_library(parent, library, replace(order, formats=("int4", "fp32")), tmp_path / "scores.parquet")
    for layer, block in enumerate(parent.spec.layers):
        own = Candidate(layer=layer, part="ffn", variant=block.ffn)
        assert _values(table)[own] == 0.0
        assert _values(table)[replace(own, variant=stored_as(own.variant, INT4))] > 0.0


def test_several_metrics_come_from_one_scoring(
    parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    (tmp_path / "items.jsonl").write_text((json.dumps(ITEM) + "\n") * 9)
    (tmp_path / "mine.py").write_text("def loudest(logits_BTV, ids_BT):\n    return logits_BTV.amax(dim=(1, 2))\n")
    asked = replace(order, metrics=("lm_loss", f"{tmp_path}/mine.py:loudest", "kl"), task=str(tmp_path / "items.jsonl"))
    table = score_library(parent, library, asked, tmp_path / "scores.parquet")
    assert table.metrics == ("lm_loss", "loudest", "kl", "task")
    assert _values(table) == _values(score_library(parent, library, order, tmp_path / "kl.parquet"))
    assert all(len(table.of_metric(name)) == len(table.of_metric("kl")) for name in table.metrics)
    assert {score.estimate.num_values for score in table.of_metric("task")} == {0, 9}
    (tmp_path / "mine.py").write_text("def loudest(logits_BTV, ids_BT):\n    return 0 * logits_BTV.amax(dim=(1, 2))\n")
    again = score_library(parent, library, asked, tmp_path / "scores.parquet")
    assert set(_values(again, "loudest").values()) == {0.0}, "a changed metric is another metric"


def test_the_influence_of_layers_is_told_by_their_hidden_states_on_all_windows(
    parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    (tmp_path / "items.jsonl").write_text((json.dumps(ITEM) + "\n") * 9)
    asked = replace(order, task=str(tmp_path / "items.jsonl"))
    table = score_library(parent, library, asked, tmp_path / "scores.parquet")
    model, states = load_model(parent), list[tuple[Tensor, Tensor]]()
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, inputs, x_BTD: states.append((inputs[0], x_BTD)))
    with torch.no_grad():
        model(_windows_of(parent, order), use_cache=False)
    wanted = [1 - torch.cosine_similarity(a.double(), b.double(), dim=-1).mean().item() for a, b in states]
    assert table.influence == pytest.approx(wanted, rel=1e-5)
    assert read_scores(tmp_path / "scores.parquet") == table


def test_rounds_double_up_to_all_windows() -> None:
    assert round_ends(32) == [4, 8, 16, 32]
    assert round_ends(100) == [13, 26, 52, 100]
    assert [round_ends(number) for number in (2, 4, 5)] == [[2], [4], [4, 5]]


def test_a_race_spends_windows_only_on_who_is_undecided(
    parent: Parent, library: Path, racing: ScoreOrder, tmp_path: Path
) -> None:
    table = score_library(parent, library, racing, tmp_path / "scores.parquet", undecided=_half)
    counts = [score.estimate.num_values for score in table.scores if score.estimate.num_values]
    assert sorted(set(counts)) == [4, 8, 16, 32]
    assert table.effort is not None
    assert (table.effort.spent, table.effort.offered) == (sum(counts), 32 * len(counts))
    assert table.effort.spent < 0.5 * table.effort.offered
    assert read_scores(tmp_path / "scores.parquet") == table
    whole = score_library(parent, library, replace(racing, race=None), tmp_path / "whole.parquet")
    assert whole.effort is not None and whole.effort.spent == whole.effort.offered == 32 * len(counts)
    for score in table.scores:
        if score.estimate.num_values == 32:
            assert score.estimate.value == pytest.approx(_values(whole)[score.candidate], rel=1e-5)


def test_a_race_in_which_nothing_is_undecided_ends_after_its_first_round(
    parent: Parent, library: Path, racing: ScoreOrder, tmp_path: Path
) -> None:
    table = score_library(parent, library, racing, tmp_path / "scores.parquet", undecided=lambda _: [])
    assert table.effort is not None and 8 * table.effort.spent == table.effort.offered


class _Killed(Exception):
    pass


@pytest.mark.parametrize(("is_race", "batches"), [(False, 1), (False, 3), (True, 1), (True, 2), (True, 3), (True, 4)])
def test_a_killed_scoring_goes_on_to_the_same_table(
    is_race: bool,
    batches: int,
    parent: Parent,
    library: Path,
    order: ScoreOrder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = replace(order, race={"keep": "half"}) if is_race else order
    asks: list[int] = []

    def undecided(table: ScoreTable) -> Collection[Candidate]:
        asks.append(len(asks))
        run = [score for score in table.scores if score.estimate.num_values]
        return [score.candidate for score in sorted(run, key=_value)[: 9 - 2 * len(asks)]]

    undecided_or_none = undecided if is_race else None
    whole = score_library(parent, library, asked, tmp_path / "whole" / "scores.parquet", undecided_or_none)
    real, num_asks, calls = rounds.replace_one, len(asks), list[int]()
    asks.clear()

    def fails_later(*arguments: object, **named: object) -> object:
        calls.append(len(calls))
        if len(calls) > batches:
            raise _Killed
        return real(*arguments, **named)  # type: ignore[arg-type]

    output = tmp_path / "killed" / "scores.parquet"
    monkeypatch.setattr(rounds, "replace_one", fails_later)
    with pytest.raises(_Killed):
        score_library(parent, library, asked, output, undecided_or_none)
    monkeypatch.setattr(rounds, "replace_one", real)
    assert score_library(parent, library, asked, output, undecided_or_none) == whole
    assert len(asks) == num_asks, "who goes on was chosen twice"
    assert not list(output.parent.glob(".score-*"))


def test_a_candidate_whose_score_is_no_number_is_named(
    parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.replace_one

    def breaks_one(*arguments: object, **named: object) -> object:
        values = real(*arguments, **named)  # type: ignore[arg-type]
        broken = next(c for c in values if key_of(c) == "layer-01-mixer-linear-fp32")
        values[broken]["kl"][1] = float("inf")
        return values

    monkeypatch.setattr(rounds, "replace_one", breaks_one)
    with pytest.raises(InputError, match="score of linear fp32 as the mixer of layer 1, by kl: got inf"):
        score_library(parent, library, order, tmp_path / "scores.parquet")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"metrics": ("nll",)}, "metric"),
        ({"metrics": ("kl", "kl")}, "score.metrics"),
        ({"metrics": ()}, "score.metrics"),
        ({"formats": ("int4", "int4-g32")}, "score.formats"),
        ({"formats": ("int3",)}, "score.formats"),
        ({"task": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_an_order_that_no_scoring_can_use_is_refused_before_any_work(
    changes: dict[str, object], field: str, parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        score_library(parent, library, replace(order, **changes), tmp_path / "scores.parquet")  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_function_with_a_name_of_ours_is_refused(
    parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def task(logits_BTV, ids_BT): ...\n")
    asked = replace(order, metrics=(f"{tmp_path}/mine.py:task",))
    with pytest.raises(InputError, match="a function named task"):
        score_library(parent, library, asked, tmp_path / "scores.parquet")


def test_the_command_line_scores_by_what_it_is_told(
    library: Path, order: ScoreOrder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.jsonl").write_text((json.dumps(ITEM) + "\n") * 2)
    out = tmp_path / "scores.parquet"
    command = ["score", str(library), "--text", order.text, "--window", "16", "--tokens", "64", "--out", str(out)]
    flags = ["--metric", "kl", "--metric", "lm_loss", "--task", str(tmp_path / "items.jsonl"), "--format", "int4"]
    assert main([*command, *flags]) == 0
    printed = capsys.readouterr().out
    assert "KL, nats per token" in printed and "lm_loss" in printed and "task" in printed and "int4-g32" in printed
    assert read_scores(out).metrics == ("kl", "lm_loss", "task")


@pytest.mark.parametrize("flags", [["--format", "int3"], ["--metric", "kl", "--metric", "kl"]])
def test_the_command_line_names_the_flag_that_it_refuses(
    flags: list[str], library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(library), "--text", "python", *flags]) == 2
    assert f"error in {flags[0]}" in capsys.readouterr().err
