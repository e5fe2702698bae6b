"""Tasks in other processes: what they share, what they refuse, and that a lost worker is replaced."""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from blockwright.errors import InputError
from blockwright.pipeline.workers import RETRIES, Packed, Workers, check_where, workers

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: [distributed]")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_packed_tensor_comes_back_as_it_was(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).mT.to(dtype)
    back = Packed.of(tensor).tensor()
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("where", ["", "local", "local:0", "local:two"])
def test_a_place_that_cannot_be_is_refused(where: str) -> None:
    with pytest.raises(InputError, match="--ray"):
        check_where(where)


class _Cluster:
    """A Ray that this process is in already, with two GPUs or none."""

    def __init__(self, num_gpus: int) -> None:
        self.num_gpus = num_gpus

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0, "object_store_memory": 1e9} | ({"GPU": 2.0} if self.num_gpus else {})


@pytest.mark.parametrize(("device", "num_gpus", "num_workers"), [("cpu", 0, 8), ("cuda", 1, 2)])
def test_tasks_take_a_gpu_only_where_they_work_on_one(
    device: str, num_gpus: int, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", _Cluster(2))
    with workers("auto", device) as found:
        assert found.options["num_gpus"] == num_gpus
        assert found.num_workers == num_workers


def test_a_cluster_without_the_gpus_that_tasks_need_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", _Cluster(0))
    with pytest.raises(InputError, match="no GPU"), workers("auto", "cuda"):
        pass


def test_without_ray_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"blockwright\[distributed\]"), workers("local:2"):
        pass


@needs_ray
def test_tasks_read_shared_tensors_and_pass_on_what_they_made(two: Workers) -> None:
    def double(packed: Packed) -> Packed:
        return Packed.of(2 * packed.tensor())

    tensor = torch.arange(5.0)
    first = two.start("double", double, two.share(Packed.of(tensor)))
    second = two.start("double again", double, first)
    found = {key: packed.tensor() for key, packed in two.as_done([("two", first), ("four", second)])}
    assert torch.equal(found["two"], 2 * tensor)
    assert torch.equal(found["four"], 4 * tensor)


@needs_ray
def test_what_a_task_refuses_is_refused_here(two: Workers) -> None:
    def refuse() -> None:
        raise InputError("text", got="none", expected="some", remedy="Give more.")

    refused = two.start("refuse", refuse)
    for task in (refused, two.start("after it", print, refused)):
        with pytest.raises(InputError, match="Give more") as caught:
            list(two.as_done([(0, task)]))
        assert caught.value.field == "text"


@needs_ray
def test_a_task_whose_worker_is_killed_runs_again(two: Workers, tmp_path: Path) -> None:
    def square(number: int) -> int:
        (tmp_path / f"{number}-{os.getpid()}").touch()
        if number == 1 and len(list(tmp_path.glob("1-*"))) == 1:
            time.sleep(60)
        return number**2

    tasks = [(number, two.start("square", square, number)) for number in range(4)]
    while not (started := list(tmp_path.glob("1-*"))):
        time.sleep(0.02)
    os.kill(int(started[0].name.partition("-")[2]), signal.SIGKILL)
    assert dict(two.as_done(tasks)) == {0: 0, 1: 1, 2: 4, 3: 9}
    assert len(list(tmp_path.glob("1-*"))) == 2


@needs_ray
def test_a_task_that_takes_every_worker_with_it_is_given_up(two: Workers, tmp_path: Path) -> None:
    def die() -> None:
        (tmp_path / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match=f"lost {RETRIES + 1} times at the same task"):
        list(two.as_done([(0, two.start("die", die))]))
    assert len(list(tmp_path.iterdir())) == RETRIES + 1
