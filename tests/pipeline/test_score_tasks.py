"""Scores by two workers are those of one process, whoever is killed meanwhile."""

import importlib.util
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.model.parent import Parent, open_parent
from blockwright.pipeline.library import LibraryOrder, build_library
from blockwright.pipeline.score import ScoreOrder, score_library
from blockwright.pipeline.score_tasks import ScoreTasks, shares_of
from blockwright.pipeline.workers import Workers
from blockwright.search.scores import read_scores
from blockwright.search.space import SpaceSettings
from blockwright.spec import Candidate, GatedFFN

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: [distributed]")


@pytest.fixture(scope="module")
def parent(small_parent: Path) -> Parent:
    return open_parent(str(small_parent))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, parent: Parent, small_text: Path) -> Path:
    folder = tmp_path_factory.mktemp("score") / "library"
    space = SpaceSettings(kv_head_shares=(0.5,), ffn_width_shares=(0.5, 0.25))
    order = LibraryOrder(
        space=space, text=str(small_text), window_tokens=32, seed=0, tokens=512, batch_windows=4, learning_rate=1e-3
    )
    build_library(parent, order, folder)
    return folder


@pytest.fixture
def order(small_text: Path) -> ScoreOrder:
    return ScoreOrder(
        text=str(small_text),
        window_tokens=16,
        tokens=32 * 16,
        seed=0,
        metrics=("kl", "lm_loss"),
        formats=("fp32", "int4"),
    )


def _tasks(two: Workers, parent: Parent, library: Path, order: ScoreOrder) -> ScoreTasks:
    return ScoreTasks(pool=two, parent=str(parent.folder), library=str(library), order=order)


def test_shares_are_of_whole_layers_and_about_equal_work() -> None:
    candidates = [
        Candidate(layer=layer, part="ffn", variant=GatedFFN(width=width)) for layer in range(12) for width in (8, 16)
    ]
    shares = shares_of(candidates, 4)
    assert Counter(candidate for share in shares for candidate in share) == Counter(candidates)
    layers = [{candidate.layer for candidate in share} for share in shares]
    assert sum(map(len, layers)) == 12
    work = [sum(12 - candidate.layer for candidate in share) for share in shares]
    assert max(work) <= 1.2 * min(work)
    assert len(shares_of(candidates[:2], 4)) == 1


@needs_ray
def test_two_workers_find_what_one_process_finds(
    two: Workers, parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    alone = score_library(parent, library, order, tmp_path / "alone.parquet")
    by_two = score_library(parent, library, order, tmp_path / "two.parquet", run=_tasks(two, parent, library, order))
    assert by_two == alone


@needs_ray
def test_a_worker_killed_in_the_middle_is_replaced(
    two: Workers, parent: Parent, library: Path, order: ScoreOrder, tmp_path: Path
) -> None:
    metric = tmp_path / "slow.py"
    metric.write_text(
        "import os, pathlib, time\n"
        "def slow(logits, ids):\n"
        "    time.sleep(0.02)\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'pid-{{os.getpid()}}').touch()\n"
        "    return logits[:, 0, 0]\n"
    )
    asked = replace(order, metrics=(f"{metric}:slow",), formats=("fp32",))
    killed: list[int] = []

    def kill() -> None:
        while not (found := [path for path in tmp_path.glob("pid-*") if path.name != f"pid-{os.getpid()}"]):
            time.sleep(0.005)
        killed.append(int(found[0].name.removeprefix("pid-")))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    by_two = score_library(parent, library, asked, tmp_path / "two.parquet", run=_tasks(two, parent, library, asked))
    killer.join()
    assert killed
    assert len(list(tmp_path.glob("pid-*"))) >= 2
    assert by_two == score_library(parent, library, asked, tmp_path / "alone.parquet")


@needs_ray
def test_the_command_scores_by_workers(
    two: Workers, library: Path, small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", str(library), "--text", str(small_text), "--window", "16", "--tokens", "256"]
    assert main([*words, "--ray", "local:2", "--out", str(tmp_path / "two.parquet")]) == 0  # connected already: `two`
    assert main([*words, "--out", str(tmp_path / "alone" / "scores.parquet")]) == 0
    assert read_scores(tmp_path / "two.parquet") == read_scores(tmp_path / "alone" / "scores.parquet")
    assert main([*words, "--ray", "local:0", "--out", str(tmp_path / "none.parquet")]) == 2
    assert "local:N" in capsys.readouterr().err
