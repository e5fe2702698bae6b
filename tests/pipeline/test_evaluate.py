"""Tasks of lm-evaluation-harness, run with no network, against a naive twin; and what is refused.

All runs of the harness share one process: it takes ten seconds to import.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from blockwright.cli.main import main
from blockwright.model.child import load_child, spec_of_child
from blockwright.model.parent import load_model, load_tokenizer, open_parent
from blockwright.statistics import estimate_mean
from harness_data import (
    NUM_PAIRS,
    NUM_QUESTIONS,
    write_child,
    write_data,
    write_tasks,
)

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: [eval]"
)
PROGRAM = """
import contextlib, io, json, socket, sys
from pathlib import Path

connect, reached = socket.socket.connect, []
def refuse(self, address):
    if self.family == socket.AF_UNIX:
        return connect(self, address)
    reached.append(str(address))
    raise OSError("no network")
socket.socket.connect = refuse

import lm_eval.tasks.manager
lm_eval.tasks.manager.__file__ = str(Path("harness/manager.py").resolve())  # one task in place of 14,000

from blockwright.cli.main import main
found = {}
for name, words in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["evaluate", *words])
    found[name] = [code, out.getvalue(), err.getvalue()]
Path("found.json").write_text(json.dumps({"runs": found, "reached": reached}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What the commands came to, by name: exit code, standard output, standard error."""

    folder: Path
    runs: dict[str, tuple[int, str, str]]
    reached: list[str]

    def result(self, task: str, metric: str, run: str = "json") -> dict[str, Any]:
        """A row of a run that printed JSON."""
        rows = json.loads(self.runs[run][1])["results"]
        return next(row for row in rows if (row["task"], row["metric"]) == (task, metric))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, small_parent: Path) -> Ran:
    folder = tmp_path_factory.mktemp("evaluate")
    write_data(folder)
    write_tasks(folder)
    write_child(small_parent, folder / "child")
    against, here = ["--against", str(small_parent)], ["--task-dir", "tasks", "--tasks"]
    commands = {
        "json": ["child", *against, *here, "both,texts", "--batch", "3", "--json", "-o", "out/tasks.json"],
        "one at a time": ["child", *here, "pairs,questions", "--batch", "1", "--json"],
        "table": ["child", *against, *here, "pairs", "--limit", "10"],
        "unknown": ["child", *here, "pear"],
        "no data": ["child", *here, "no_data"],
        "torn data": ["child", *here, "torn_data"],
        "no field": ["child", *here, "no_field"],
        "no setting": ["child", *here, "no_setting"],
        "too long": ["child", *here, "writing"],
        "online": ["child", "--tasks", "online"],
        "orphan": ["child", "--task-dir", "orphan", "--tasks", "orphan"],
        "list": ["child", "--task-dir", "list", "--tasks", "list"],
        "broken": ["child", "--task-dir", "broken", "--tasks", "broken"],
        "over an input": ["child", *here, "pairs", "-o", "tasks/pairs.yaml"],
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "found.json").read_text())
    return Ran(folder=folder, runs={name: tuple(run) for name, run in found["runs"].items()}, reached=found["reached"])


Judge = Callable[[str, str], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """The tasks, done one choice at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    folder: Path

    def nats(self, context: str, text: str) -> float:
        """-log p of the text after the context, or after the first token where there is none."""
        start = self.tokenizer.encode(context) if context else []
        ids = self.tokenizer.encode(context + text)
        first = len(start)
        if not context:
            ids, first = [self.tokenizer.bos_token_id, *ids], 1
        with torch.no_grad():
            logits = self.model(torch.tensor([ids]), use_cache=False).logits[0]
        logs = logits.double().log_softmax(-1)
        return -sum(float(logs[i - 1, ids[i]]) for i in range(first, len(ids)))

    def _records(self, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / file).read_text().splitlines()]

    def pairs(self) -> np.ndarray:
        """Whether each good sentence is the likelier one."""
        records = self._records("pairs.jsonl")
        return np.array([float(self.nats("", r["good"]) < self.nats("", r["bad"])) for r in records])

    def questions(self, by_length: bool = False) -> np.ndarray:
        """Whether each right choice is the likeliest, for each of its characters or as a whole."""
        right = []
        for record in self._records("questions.jsonl"):
            nats = [
                self.nats(record["prompt"], " " + each) / (len(each) if by_length else 1) for each in record["choices"]
            ]
            right.append(float(nats.index(min(nats)) == record["answer"]))
        return np.array(right)

    def bits_per_byte(self) -> float:
        """Of all texts together."""
        texts = [record["text"] for record in self._records("texts.jsonl")]
        return sum(self.nats("", text) for text in texts) / sum(len(text) for text in texts) / math.log(2)


@pytest.fixture(scope="module")
def twins(ran: Ran, small_parent: Path) -> tuple[Twin, Twin]:
    """The child's and the parent's."""
    parent = open_parent(str(small_parent))
    tokenizer = load_tokenizer(parent)
    config = json.loads((ran.folder / "child" / "config.json").read_text())
    spec = spec_of_child(ran.folder / "child")
    assert spec is not None and config["model_type"] == "nemotron-nas"
    models = (load_child(ran.folder / "child", spec), load_model(parent))
    child, own = (Twin(model=model, tokenizer=tokenizer, folder=ran.folder) for model in models)
    return child, own


@needs_harness
def test_nothing_is_asked_of_the_network(ran: Ran) -> None:
    assert ran.runs["json"][0] == 0, ran.runs["json"][2]
    assert ran.reached == []


@needs_harness
def test_a_task_without_prompts_gives_what_the_naive_twin_gives(ran: Ran, twins: tuple[Twin, Twin]) -> None:
    child, parent = (twin.pairs() for twin in twins)
    row = ran.result("pairs", "acc")
    assert 0 < child.mean() < 1 and not np.array_equal(child, parent), "this test can tell nothing apart"
    assert row["value"] == pytest.approx(child.mean())
    assert row["against_value"] == pytest.approx(parent.mean())
    assert row["standard_error"] == pytest.approx(child.std(ddof=1) / math.sqrt(NUM_PAIRS))
    assert (row["num_items"], row["num_shots"], row["is_higher_better"]) == (NUM_PAIRS, 0, True)


@needs_harness
def test_the_difference_is_of_the_same_items(ran: Ran, twins: tuple[Twin, Twin]) -> None:
    child, parent = (twin.pairs() for twin in twins)
    expected = estimate_mean(child - parent)
    found = ran.result("pairs", "acc")["difference"]
    assert found == {name: pytest.approx(getattr(expected, name)) for name in ("value", "low", "high", "num_values")}
    assert found["low"] < found["value"] < found["high"]


@needs_harness
@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_a_task_with_prompts_gives_what_the_naive_twin_gives(ran: Ran, twins: tuple[Twin, Twin], metric: str) -> None:
    child, parent = (twin.questions(metric == "acc_norm") for twin in twins)
    row = ran.result("questions", metric)
    assert (row["value"], row["against_value"]) == (pytest.approx(child.mean()), pytest.approx(parent.mean()))
    assert row["difference"]["value"] == pytest.approx((child - parent).mean())


@needs_harness
def test_a_group_is_the_mean_that_it_says_it_is(ran: Ran, twins: tuple[Twin, Twin]) -> None:
    child, parent = ((twin.pairs().mean(), twin.questions().mean()) for twin in twins)
    row = ran.result("both", "acc")
    assert row["value"] == pytest.approx(np.mean(child))
    assert row["difference"]["value"] == pytest.approx(np.mean(child) - np.mean(parent))
    assert row["difference"]["num_values"] == row["num_items"] == NUM_PAIRS + NUM_QUESTIONS


@needs_harness
def test_a_metric_that_is_no_mean_is_resampled_as_a_whole(ran: Ran, twins: tuple[Twin, Twin]) -> None:
    child, parent = (twin.bits_per_byte() for twin in twins)
    row = ran.result("texts", "bits_per_byte")
    assert row["value"] == pytest.approx(child, rel=1e-5)
    difference = row["difference"]
    assert difference["value"] == pytest.approx(child - parent, rel=1e-4)
    assert difference["low"] < difference["value"] < difference["high"]
    assert (row["standard_error"], row["is_higher_better"]) == (None, False)


@needs_harness
def test_batches_change_no_answer(ran: Ran) -> None:
    for task in ("pairs", "questions"):
        assert ran.result(task, "acc", "one at a time")["value"] == ran.result(task, "acc")["value"]
    assert ran.result("pairs", "acc", "one at a time")["difference"] is None


@needs_harness
def test_the_file_holds_what_is_printed_and_says_what_it_is_of(ran: Ran) -> None:
    written = json.loads((ran.folder / "out" / "tasks.json").read_text())
    assert written == json.loads(ran.runs["json"][1])
    assert written["checkpoint_digest"] != written["against_digest"]
    assert {"lm-eval", "torch", "blockwright"} <= written["software"].keys()
    assert [path.name for path in (ran.folder / "out").iterdir()] == ["tasks.json"]


@needs_harness
def test_the_table_shows_the_first_items_only_where_asked(ran: Ran, twins: tuple[Twin, Twin]) -> None:
    code, table, _ = ran.runs["table"]
    child, parent = (twin.pairs()[:10].mean() for twin in twins)
    row = next(line for line in table.splitlines() if line.split()[:1] == ["pairs"])
    assert code == 0
    assert row.split()[1:5] == ["acc", "↑", "10", "0"]
    assert f"{child:.4f} ±" in row and f"{parent:.4f} ±" in row and f"{child - parent:+.4f} (" in row


@needs_harness
@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("unknown", "error in --tasks\n  got       'pear'"),
        ("unknown", "pairs"),
        ("no data", "error in task no_data: data"),
        ("no data", "absent.jsonl"),
        ("torn data", "error in task torn_data: data"),
        ("torn data", "JSON"),
        ("no field", "error in task no_field\n"),
        ("no setting", "colour"),
        ("too long", "error in task writing: max_gen_toks\n  got       256\n  expected  fewer than the 64"),
        ("online", "error in task online: data"),
        ("orphan", "orphan/orphan.yaml\n  got       task orphan, which the harness passes over"),
        ("list", "list/list.yaml\n  got       no mapping"),
        ("broken", "broken/broken.yaml\n"),
        ("over an input", "tasks/pairs.yaml, which is an input"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(ran: Ran, run: str, said: str) -> None:
    code, _, error = ran.runs[run]
    assert code == 2
    assert said in error


def test_without_the_harness_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.models.huggingface", raising=False)
    assert main(["evaluate", "nowhere", "--tasks", "arc_easy"]) == 2
    assert "pip install 'blockwright[eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", ","], "--tasks"),
        (["--tasks", "a,b,a"], "--tasks"),
        (["--tasks", "a", "--limit", "0"], "--limit"),
        (["--tasks", "a", "--batch", "0"], "--batch"),
    ],
)
def test_flags_that_cannot_be_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nowhere", *words]) == 2
    assert f"error in {said}" in capsys.readouterr().err
