"""The library by two workers is that of one process, bit for bit, whoever is killed meanwhile."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockwright.cli.main import main
from blockwright.model.parent import load_model, open_parent
from blockwright.pipeline.library_tasks import by_layer, train_by_workers
from blockwright.pipeline.workers import Workers, workers
from blockwright.search.space import SpaceSettings, candidates
from blockwright.train.bld import BldSettings, Trainee, needs_training, trainee_of
from blockwright.train.one_group import LibraryJob, train_group
from blockwright.train.trained import Trained
from blockwright.train.windows import Batch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: [distributed]")

Alone = tuple[list[Trained], Path]


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with workers("local:2") as found:
        yield found


@pytest.fixture(scope="module")
def job(small_parent: Path) -> LibraryJob:
    spec = open_parent(str(small_parent)).spec
    space = SpaceSettings(kv_head_shares=(0.5,), ffn_width_shares=(0.5, 0.25))
    ids_NT = torch.randint(0, 300, (44, 4, 32), generator=torch.Generator().manual_seed(0))
    return LibraryJob(
        parent=spec,
        trainees=tuple(trainee_of(spec, c) for c in candidates(spec, space) if needs_training(spec, c)),
        training=[Batch(ids_BT=ids_BT) for ids_BT in ids_NT[:40]],
        reserved=[Batch(ids_BT=ids_BT) for ids_BT in ids_NT[40:42]],
        held_out=[Batch(ids_BT=ids_BT) for ids_BT in ids_NT[42:]],
        settings=BldSettings(learning_rate=1e-3),
        checkpoint_steps=10,
    )


@pytest.fixture(scope="module")
def groups(job: LibraryJob) -> list[list[Trainee]]:
    return by_layer([job.trainees])


@pytest.fixture(scope="module")
def alone(job: LibraryJob, small_parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What one process trains in one group."""
    folder = tmp_path_factory.mktemp("alone")
    return train_group(load_model(open_parent(str(small_parent))), job, folder), folder


def _assert_same(trained: list[Trained], folder: Path, alone: Alone) -> None:
    assert sorted(trained, key=_file) == sorted(alone[0], key=_file)
    for each in trained:
        assert (folder / each.file).read_bytes() == (alone[1] / each.file).read_bytes()


def _file(trained: Trained) -> str:
    return trained.file


def test_groups_are_cut_at_layers_and_hold_each_trainee_once(job: LibraryJob, groups: list[list[Trainee]]) -> None:
    assert [{trainee.layer for trainee in group} for group in groups] == [{0}, {1}]
    assert {trainee for group in groups for trainee in group} == set(job.trainees)


@pytest.mark.parametrize("store_bytes", [2**30, 0])
def test_two_workers_train_what_one_process_trains(
    store_bytes: int,
    two: Workers,
    job: LibraryJob,
    groups: list[list[Trainee]],
    alone: Alone,
    small_parent: Path,
    tmp_path: Path,
) -> None:
    done: list[int] = []
    pool = replace(two, store_bytes=store_bytes)  # with states from shared memory, and without
    trained = train_by_workers(pool, small_parent, job, groups, tmp_path, done.append)
    assert done == [0, 1, 2]
    _assert_same(trained, tmp_path, alone)


def test_a_worker_killed_in_the_middle_is_replaced(
    two: Workers, job: LibraryJob, groups: list[list[Trainee]], alone: Alone, small_parent: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not (states := list(tmp_path.glob("layer-01-*.state"))):  # ten steps of forty are done
            time.sleep(0.005)
        killed.append(_pid(tmp_path, states[0].name[:8]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    trained = train_by_workers(two, small_parent, job, groups, tmp_path)
    killer.join()
    assert _pid(tmp_path, "layer-01") != killed[0]
    _assert_same(trained, tmp_path, alone)


def _pid(folder: Path, layer: str) -> int:
    [running] = folder.glob(f"{layer}-*.running")
    return json.loads(running.read_text())["pid"]


def test_finished_groups_are_not_trained_again(
    two: Workers, job: LibraryJob, groups: list[list[Trainee]], alone: Alone, small_parent: Path, tmp_path: Path
) -> None:
    train_by_workers(two, small_parent, job, groups[:1], tmp_path)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("layer-00-*")}
    done: list[int] = []
    trained = train_by_workers(two, small_parent, job, groups, tmp_path, done.append)
    assert done == [1, 2]
    assert {path: path.stat().st_mtime_ns for path in first} == first
    _assert_same(trained, tmp_path, alone)


def test_a_killed_driver_goes_on_from_finished_layers(small_parent: Path, small_text: Path, tmp_path: Path) -> None:
    words = ["library", str(small_parent), "--text", str(small_text), "--window", "32", "--tokens", "24k"]
    two, alone = tmp_path / "two" / "library", tmp_path / "alone" / "library"
    by_two = [*words, "--ray", "local:2", "--out", str(two)]
    driver = subprocess.Popen([sys.executable, "-m", "blockwright", *by_two], stderr=subprocess.DEVNULL)
    while not list(two.parent.glob(".library-*/layer-*.safetensors")):
        assert driver.poll() is None
        time.sleep(0.005)
    driver.kill()
    driver.wait()
    [work] = two.parent.glob(".library-*")
    kept = [path.name for path in work.glob("layer-*.safetensors")]
    assert kept
    assert not two.exists()
    assert main(by_two) == 0
    assert main([*words, "--out", str(alone)]) == 0
    assert {path.name for path in two.iterdir()} == {path.name for path in alone.iterdir()}
    for path in alone.glob("*.safetensors"):
        assert (two / path.name).read_bytes() == path.read_bytes()
