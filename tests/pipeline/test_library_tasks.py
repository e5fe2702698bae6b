"""The library by two workers is that of one process, bit for bit, whoever is killed meanwhile."""

import importlib.util
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockwright.cli.main import main
from blockwright.model.parent import load_model, open_parent
from blockwright.pipeline.library_tasks import train_by_workers
from blockwright.pipeline.workers import Workers
from blockwright.search.space import SpaceSettings, candidates
from blockwright.train.bld import BldSettings, Trainee, needs_training, trainee_of
from blockwright.train.one_group import LibraryJob, train_group
from blockwright.train.trained import Trained
from blockwright.train.windows import Batch
from forked import fork_command

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: [distributed]")

Alone = tuple[list[Trained], Path]


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
    layers = sorted({trainee.layer for trainee in job.trainees})
    return [[trainee for trainee in job.trainees if trainee.layer == layer] for layer in layers]


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
        while not list(tmp_path.glob("layer-01-*.state")):  # ten steps of forty are done
            time.sleep(0.005)
        killed.append(_worker_of("group 1"))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    trained = train_by_workers(two, small_parent, job, groups, tmp_path)
    killer.join()
    assert killed
    _assert_same(trained, tmp_path, alone)


def _worker_of(task: str) -> int:
    """Ray gives a worker its task's name for a title; ours come from this process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], check=True, capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in rows}

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    titled = [int(pid) for pid, _, *title in rows if title and title[0].strip() == f"ray::{task}"]
    [found] = [pid for pid in titled if is_ours(pid)]
    return found


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
    driver = fork_command(*by_two)
    while not list(two.parent.glob(".library-*/layer-*.safetensors")):
        assert driver.is_running, driver.wait()
        time.sleep(0.005)
    driver.process.kill()
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
