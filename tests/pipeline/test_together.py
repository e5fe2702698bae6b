"""Distillation under torchrun: two ranks are one, and a rank that is lost loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockwright.cli.main import main
from blockwright.errors import InputError
from blockwright.model.child import build_child, load_weights, save_child
from blockwright.model.parent import load_tokenizer, open_parent
from blockwright.pipeline.lock import entering
from blockwright.spec import Block, GatedFFN, NoOp
from forked import fork_ranks

pytestmark = pytest.mark.slow

NUM_STEPS = 60
Words = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_parent: Path) -> Path:
    """A folder with a child to distil, of random weights."""
    folder = tmp_path_factory.mktemp("together")
    parent = open_parent(str(small_parent))
    own = parent.spec.layers[0]
    spec = replace(parent.spec, layers=(replace(own, ffn=GatedFFN(width=16)), Block(mixer=NoOp(), ffn=own.ffn)))
    child = build_child(spec, parent.config)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 + (tensor.ndim == 1)
        for name, tensor in child.state_dict().items()
        if name != "lm_head.weight"
    }
    (folder / "realised").mkdir()
    save_child(load_weights(child, weights), spec, load_tokenizer(parent), folder / "realised", {})
    return folder


@pytest.fixture(scope="module")
def words(folder: Path, small_parent: Path, small_text: Path) -> Words:
    def of(name: str) -> list[str]:
        tokens = str(NUM_STEPS * 4 * 32)
        training = ["--window", "32", "--batch", "4", "--tokens", tokens, "--text", str(small_text)]
        out = ["--out", str(folder / name / "child")]
        return ["distill", str(folder / "realised"), "--teacher", str(small_parent), *training, *out]

    return of


@pytest.fixture(scope="module")
def alone(folder: Path, words: Words) -> Path:
    """The child of one process."""
    assert main(words("alone")) == 0
    return folder / "alone" / "child"


def _torchrun(words: list[str]) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        *["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "blockwright"],
        *words,
    ]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def _assert_same(child: Path, alone: Path) -> None:
    mine, theirs = (json.loads((folder / "distillation.json").read_text()) for folder in (child, alone))
    assert len(mine) == len(theirs) == NUM_STEPS
    assert theirs[-1]["loss"] < theirs[0]["loss"]
    for one, other in zip(mine, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)
    weights = load_file(child / "model.safetensors")
    expected = load_file(alone / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-3)


def test_two_ranks_distil_what_one_distils(folder: Path, words: Words, alone: Path) -> None:
    run = _torchrun(words("two"))
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    _assert_same(folder / "two" / "child", alone)
    assert errors.count("distill ") == 1  # the first rank alone tells of it
    assert not list((folder / "two").glob(".distill-*"))


def test_two_ranks_keep_the_parents_answers_and_judge_as_one(folder: Path, words: Words) -> None:
    kept = ["--teacher-logits", "cached"]
    fork_ranks(2, None, *words("two cached"), *kept)
    assert main([*words("one cached"), *kept]) == 0
    _assert_same(folder / "two cached" / "child", folder / "one cached" / "child")
    two, one = (
        json.loads((folder / f"{name} cached" / "child" / "quality.json").read_text()) for name in ("two", "one")
    )
    for when in ("before", "after"):
        assert two[when]["kl"]["value"] == pytest.approx(one[when]["kl"]["value"], rel=1e-3)


def test_a_lost_rank_is_named_and_another_number_of_ranks_goes_on(folder: Path, words: Words, alone: Path) -> None:
    run = _torchrun(words("lost"))
    while not (states := list((folder / "lost").glob(".distill-*/state.safetensors"))):
        assert run.poll() is None
        time.sleep(0.005)
    os.kill(_rank(run.pid, 1), signal.SIGKILL)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "lost the other ranks" in errors
    assert "goes on from the last state kept" in errors
    assert states[0].exists()
    assert main(words("lost")) == 0
    _assert_same(folder / "lost" / "child", alone)


def _rank(parent: int, rank: int) -> int:
    """The process of a rank, among the children of torchrun."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(") ")[2].split()
            environment = (process / "environ").read_text().split("\0")
        except OSError:
            continue
        if int(fields[1]) == parent and f"RANK={rank}" in environment:
            return int(process.name)
    raise AssertionError(f"no rank {rank} below {parent}")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_not_told_as_taken() -> None:
    with pytest.raises(InputError, match="/proc: got no file can be made in it"), entering(Path("/proc"), 0.1):
        pass
