"""The README's stages, one command after the other, on the small parent."""

import contextlib
import io
import json
import shlex
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.search.plan import read_plan
from pages import all_text

pytestmark = pytest.mark.slow

LOAD = "chat=1x16+16"
BUDGET = "parameters@chat <= 80%"
TRAINING = ["--window", "32", "--tokens", "1k"]
MADE_SMALL = {
    "profile": ["--load", LOAD, "--seconds", "0.01"],
    "library": TRAINING,
    "score": ["--window", "32", "--tokens", "256"],
    "search": ["--load", LOAD, "--frontier", "4", "--json"],
    "realise": [],
    "distill": TRAINING,
    "compile": [],
    "measure": ["--load", LOAD, "--seconds", "0.05", "--json"],
    "generate": ["--tokens", "8"],
}
"""Flags that are added to each command of the README."""

FILES = [
    "profile/measurements.csv",
    "library/index.json",
    "scores.parquet",
    "plan.json",
    "realised/config.json",
    "child/model.safetensors",
    "engine/engine.json",
    "engine/model.onnx",
    "parent-engine/engine.json",
]


def _readme_commands() -> list[list[str]]:
    section = all_text().partition("\n## Stage by stage\n")[2].partition("\n## ")[0]
    lines = section.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    blockwright ")]


Printed = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def printed(folder: Path, small_parent: Path, small_text: Path) -> Printed:
    """What each stage printed; all of them must have ended well."""
    replaced = {"recipes/demo-parent": str(small_parent), "python": str(small_text)}
    printed: Printed = {}
    with contextlib.chdir(folder):
        for stage, *words in _readme_commands():
            words = [BUDGET if "@chat <=" in word else replaced.get(word, word) for word in words]
            with contextlib.redirect_stdout(io.StringIO()) as output:
                assert main([stage, *words, *MADE_SMALL[stage]]) == 0, f"{stage} failed"
            printed[stage] = output.getvalue()
    return printed


def test_the_readme_goes_through_every_stage(printed: Printed) -> None:
    assert list(printed) == list(MADE_SMALL)


def test_every_stage_writes_its_files_and_leaves_no_unfinished_work(printed: Printed, folder: Path) -> None:
    assert [file for file in FILES if not (folder / file).exists()] == []
    assert not list(folder.glob(".*-*"))
    assert {path.name for path in folder.iterdir()} - {".lock", "manifest.json"} == {
        file.split("/")[0] for file in FILES
    }


def test_the_plan_comes_as_json_and_keeps_its_budget(printed: Printed, folder: Path) -> None:
    assert json.loads(printed["search"]) == json.loads((folder / "plan.json").read_text())
    plan = read_plan(folder / "plan.json")
    (promise,) = [promise for promise in plan.promises if promise.quantity == "parameters"]
    assert plan.status == "optimal"
    assert promise.child.value <= 0.8 * promise.parent.value


def test_measured_costs_come_as_json_and_are_of_the_plans_child(printed: Printed, folder: Path) -> None:
    costs = {cost["quantity"]: cost for cost in json.loads(printed["measure"])}
    assert set(costs) == {"time_per_token", "time_to_first_token", "memory", "parameters"}
    (promise,) = [p for p in read_plan(folder / "plan.json").promises if p.quantity == "parameters"]
    assert costs["parameters"]["child"]["value"] == promise.child.value
    assert costs["parameters"]["parent"]["value"] == promise.parent.value


def test_the_engine_goes_on_with_the_prompt(printed: Printed) -> None:
    assert printed["generate"].startswith("def main(")
