"""The library's files: the formats that its space allows, and what of a candidate's training is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from blockwright.cli.main import main
from blockwright.errors import InputError
from blockwright.files import read_json
from blockwright.library import CURVES, Library, read_library
from blockwright.model.parent import Parent, open_parent
from blockwright.pipeline import library_plan
from blockwright.pipeline.candidates import candidates_in
from blockwright.pipeline.library import LibraryOrder, _tell, build_library, count_for
from blockwright.pipeline.library_plan import LibraryMeans
from blockwright.pipeline.library_table import count_words
from blockwright.pipeline.score import ScoreOrder, score_library
from blockwright.search.scores import read_scores
from blockwright.search.space import LayerSpace, SpaceSettings
from blockwright.spec import FP32, NoOp, parse_format
from blockwright.train.bld import Trainee
from blockwright.train.initialise import AS_PUBLISHED
from blockwright.train.trained import Kept, Trained

INT4 = parse_format("int4")
SPACE = SpaceSettings(
    kv_head_shares=(),
    ffn_width_shares=(0.5,),
    has_linear=False,
    formats=("fp32",),
    overrides=(LayerSpace(layers=0, formats=("int4",)), LayerSpace(layers=1, formats=("fp32", "int4"))),
)


@pytest.fixture(scope="module")
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture(scope="module")
def order(small_text: Path) -> LibraryOrder:
    return LibraryOrder(
        space=SPACE, text=str(small_text), window_tokens=32, seed=0, tokens=256, batch_windows=4, learning_rate=1e-3
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, parent: Parent, order: LibraryOrder) -> Path:
    folder = tmp_path_factory.mktemp("library") / "library"
    build_library(parent, order, folder)
    return folder


def _formats(library: Library, *asked: str) -> list[set[str]]:
    """What each layer is offered in."""
    found = candidates_in(library, [parse_format(text) for text in asked])
    return [
        {str(c.variant.weights) for c in found if c.layer == layer and not isinstance(c.variant, NoOp)}
        for layer in range(len(library.parent.layers))
    ]


def test_candidates_come_in_the_formats_that_the_space_allows(folder: Path, parent: Parent) -> None:
    library = read_library(folder)
    num_layers = len(parent.spec.layers)
    assert library.formats == ((INT4,), (FP32, INT4), *((FP32,),) * (num_layers - 2))
    every = [{"int4-g32"}, {"fp32", "int4-g32"}, *[{"fp32"}] * (num_layers - 2)]
    assert _formats(library, "fp32", "int4") == _formats(library, "int4", "int8", "fp32") == every
    with pytest.raises(InputError, match="formats: got fp32; expected one at least that the space allows in layer 0"):
        candidates_in(library, [FP32])
    unbound = replace(library, formats=())
    assert _formats(unbound, "fp32", "int4") == [{"fp32", "int4-g32"}] * num_layers


def test_only_what_the_space_allows_is_scored(folder: Path, parent: Parent, small_text: Path, tmp_path: Path) -> None:
    asked = ScoreOrder(text=str(small_text), window_tokens=16, tokens=8 * 16, seed=0, formats=("fp32", "int4"))
    score_library(parent, folder, asked, tmp_path / "scores.parquet")
    table, library = read_scores(tmp_path / "scores.parquet"), read_library(folder)
    assert {score.candidate for score in table.scores} == set(candidates_in(library, [FP32, INT4]))
    assert table.formats == library.formats


def test_a_library_taken_over_keeps_its_formats_unless_others_are_asked_for(
    folder: Path, parent: Parent, order: LibraryOrder, tmp_path: Path
) -> None:
    plain = replace(order, start=str(folder), space=replace(SPACE, formats=(), overrides=()))
    assert build_library(parent, plain, tmp_path / "plain").formats == read_library(folder).formats
    other = replace(plain, space=replace(plain.space, formats=("int8",)))
    assert set(build_library(parent, other, tmp_path / "other").formats) == {(parse_format("int8"),)}


def test_index_and_curves_say_which_weights_are_kept(
    parent: Parent, order: LibraryOrder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rate, kept in (("good", 1e-3, "trained"), ("bad", 1.0, "initial")):
        asked = replace(order, learning_rate=rate, init=AS_PUBLISHED)
        library, said = build_library(parent, asked, tmp_path / name), capsys.readouterr().err
        curves = read_json(tmp_path / name / CURVES)
        assert {entry.kept for entry in library.entries} == {kept}
        for entry in library.entries:
            curve = curves[entry.candidate.name]
            assert curve["held_out_nmse"] == {"initial": entry.initial_nmse, "trained": entry.trained_nmse}
            assert (curve["reserved_nmse"]["initial"] < curve["reserved_nmse"]["trained"]) == (kept == "initial")
            assert curve["kept"] == kept
        told = f"note      {len(library.entries)} of {len(library.entries)} keep their first weights" in said
        assert told == (kept == "initial")


def test_skipping_all_tokens_is_refused_at_once(parent: Parent, order: LibraryOrder, tmp_path: Path) -> None:
    assert replace(order, skip_first_tokens=31).skip_first_tokens == 31
    with pytest.raises(InputError, match="--skip-first-tokens: got 32 of windows of 32"):
        replace(order, skip_first_tokens=32)
    lines = "\n".join(json.dumps({"text": f"word {number}"}) for number in range(400))
    (tmp_path / "short.jsonl").write_text(lines)
    short = replace(order, text=str(tmp_path / "short.jsonl"), skip_first_tokens=31, masks_documents=True)
    with pytest.raises(InputError, match="more than any document has"):
        build_library(parent, short, tmp_path / "library")


def test_workers_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_plan, "free_bytes", lambda device: 100.0)
    assert LibraryMeans().planned_bytes == pytest.approx(80)
    assert LibraryMeans(ray="local:5").planned_bytes == pytest.approx(65 / 5)
    monkeypatch.setattr(library_plan.os, "cpu_count", lambda: 13)
    assert LibraryMeans(ray="auto").planned_bytes == pytest.approx(65 / 13)
    assert LibraryMeans(ray="auto", device="cuda").planned_bytes == pytest.approx(80)
    assert LibraryMeans(ray="local:5", memory_bytes=7.0).planned_bytes == 7


def test_memory_that_calibration_does_not_fit_is_refused(
    parent: Parent, order: LibraryOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = count_for(parent, order, tmp_path / "library", LibraryMeans())
    assert enough.needed_bytes == max(enough.calibration_bytes, enough.plan.memory_bytes)
    monkeypatch.setattr(library_plan, "calibration_bytes", lambda *_: 2 * enough.plan.memory_bytes)
    means = LibraryMeans(memory_bytes=1.5 * enough.plan.memory_bytes)
    with pytest.raises(InputError, match="to find first weights"):
        count_for(parent, order, tmp_path / "library", means)


def test_the_count_is_of_the_tasks_that_workers_get(
    parent: Parent, order: LibraryOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_plan.os, "cpu_count", lambda: 8 * torch.get_num_threads())
    alone = count_for(parent, order, tmp_path / "library", LibraryMeans())
    by_two = count_for(parent, order, tmp_path / "library", LibraryMeans(ray="local:2"))
    assert (len(alone.plan.groups), alone.num_at_once) == (1, 1)
    assert (len(by_two.plan.groups), by_two.num_at_once) == (len(parent.spec.layers), 2)
    flops = by_two.plan.parent_flops + by_two.plan.student_flops
    assert by_two.time_s == pytest.approx(flops / by_two.flops_per_s / 2)
    assert f"in {len(by_two.plan.groups)} passes of the parent, 2 at once" in count_words(by_two)


def test_a_recipe_whose_formats_its_space_forbids_is_refused_before_any_work(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(space={"overrides": [{"layers": 1, "formats": ["int8"]}]})
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "error in formats" in message and "in layer 1: int8-g32" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kept", "words"), [("initial", "its first weights are kept"), ("trained", "its last good")])
def test_what_is_kept_of_a_training_that_broke_off_is_said(
    kept: Kept, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Trained(
        trainee=cast("Trainee", None),
        file="layer-0.safetensors",
        initial_nmse=1.0,
        nmse=1.0,
        initial_delta_nmse=1.0,
        delta_nmse=1.0,
        trained_nmse=None,
        trained_delta_nmse=None,
        initial_reserved_nmse=1.0,
        trained_reserved_nmse=None,
        kept=kept,
        stopped_at=3,
        trained_steps=2,
        curve={},
    )
    _tell([result])
    assert f"no number at batch 3, {words}" in capsys.readouterr().err
