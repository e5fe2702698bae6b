"""Beyond sums of scores: whole children measured, and never a worse plan than the best sum."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blockwright.cli.main import main
from blockwright.library import read_library
from blockwright.model.divergence import kl_divergence
from blockwright.model.parent import Parent, load_model, open_parent
from blockwright.pipeline.inputs import read_text, windows_of
from blockwright.pipeline.library import build_library
from blockwright.pipeline.recipe import read_recipe
from blockwright.pipeline.run import library_order
from blockwright.pipeline.wholes import Wholes
from blockwright.search.plan import read_plan
from blockwright.spec import FP32, GatedFFN, NoOp, parse_format, with_candidate, with_format


@pytest.fixture
def wholes(tmp_path: Path, write_recipe: Callable[..., Path]) -> Wholes:
    recipe = read_recipe(write_recipe())
    parent: Parent = open_parent(recipe.parent)
    build_library(parent, library_order(recipe), tmp_path / "library")
    text = read_text(recipe.text)
    windows = windows_of(parent, text.training, length=32, num_tokens=320, seed=5)
    return Wholes(
        model=load_model(parent),
        library=read_library(tmp_path / "library"),
        folder=tmp_path / "library",
        ids_NT=windows.ids_NT,
    )


def test_what_whole_children_lose_is_what_their_own_forward_says(wholes: Wholes) -> None:
    parent = wholes.library.parent
    candidates = [c for c in wholes.library.candidates if c.variant in (NoOp(), GatedFFN(width=32))]
    specs = [with_candidate(with_candidate(parent, a), b) for a, b in itertools.pairwise(candidates)]
    children = [wholes.child(spec) for spec in specs]
    found = wholes.losses(children, 1, 10)
    for child, values in zip(children, found, strict=True):
        with torch.no_grad():
            ids_BT = wholes.ids_NT[1:10]
            kl_BT = kl_divergence(wholes.model(ids_BT).logits, child(ids_BT).logits)
        assert np.allclose(values, kl_BT.mean(dim=1).numpy(), rtol=1e-4, atol=1e-7)


def test_what_a_candidate_changes_in_a_child_is_the_difference_of_two_children(wholes: Wholes) -> None:
    parent = wholes.library.parent
    offered = list(wholes.library.candidates)
    spec = with_candidate(parent, next(c for c in offered if c.variant == NoOp() and c.part == "mixer"))
    spec = with_candidate(spec, next(c for c in offered if isinstance(c.variant, GatedFFN) and c.variant.width < 64))
    changes = wholes.changes(spec, offered, 10)
    held = {c for c in offered if c.variant == getattr(spec.layers[c.layer], c.part)}
    assert set(changes) == set(offered) - held
    [own] = wholes.losses([wholes.child(spec)], 0, 10)
    for candidate, change in changes.items():
        [values] = wholes.losses([wholes.child(with_candidate(spec, candidate))], 0, 10)
        assert change == pytest.approx(np.mean(values) - np.mean(own), rel=1e-3, abs=1e-6)


def test_a_child_in_another_format_is_measured_in_fp32(wholes: Wholes) -> None:
    parent = with_format(wholes.library.parent, parse_format("int4"))
    [values] = wholes.losses([wholes.child(parent)], 0, 4)
    assert max(values) < 1e-6
    assert with_format(parent, FP32) == wholes.library.parent


def test_a_run_that_refines_ends_with_a_plan_no_worse_than_the_best_sum(
    tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    refine = {"tokens": 512, "rounds": 2, "pool_size": 3, "pairs": 2, "heal_tokens": 256}
    recipe = write_recipe(budgets=["parameters@chat <= 60%"], refine=refine, score={"tokens": 512, "races": True})
    folder = tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(folder)]) == 0
    best_sum, refined = read_plan(folder / "plan.json"), read_plan(folder / "refined.json")
    assert best_sum.whole is None and refined.whole is not None
    assert refined.score >= best_sum.score - 1e-12
    record = json.loads((folder / "refine.json").read_text())
    plans, windows = record["plans"], record["windows"]
    assert plans[0]["way"] == "best sum" and plans[0]["windows"] == windows
    assert len([plan for plan in plans if plan["is_chosen"]]) == 1
    chosen = next(plan for plan in plans if plan["is_chosen"])
    assert chosen["healed_kl"] is not None
    assert chosen["kl"] == pytest.approx(refined.whole.kl.value)
    assert plans[0]["kl"] == pytest.approx(refined.whole.best_sum_kl.value)
    assert refined.whole.plans_measured == len(plans) >= 3
    assert {line.quantity: line.spent <= line.limit * (1 + 1e-9) for line in refined.budgets} == {"parameters": True}
    assert json.loads((folder / "realised" / "config.json").read_text())["num_hidden_layers"] == 2
    assert "measured" in capsys.readouterr().out


def test_refining_by_hand_teaches_budgets_and_keeps_what_was_measured(
    tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(budgets=["parameters@chat <= 60%"])
    folder = tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(folder)]) == 0
    text = read_recipe(recipe).text
    command = ["refine", str(folder / "library"), "--scores", str(folder / "scores.parquet"), "--text", text]
    command += ["--profile", str(folder / "profile.json"), "--load", "chat=1x16+16", "--window", "32"]
    command += ["--tokens", "512", "--rounds", "2", "--pool", "2", "--out", str(tmp_path / "refined.json")]
    capsys.readouterr()
    assert main([*command, "--budget", "parameters <= 60%", "--json"]) == 0
    plan = read_plan(tmp_path / "refined.json")
    assert json.loads(capsys.readouterr().out)["whole"]["kl"]["value"] == plan.whole.kl.value  # type: ignore[union-attr]
    assert plan.whole is not None and plan.whole.kl.value <= plan.whole.best_sum_kl.value
    before = (tmp_path / "refined.json").stat().st_mtime_ns
    assert main([*command, "--budget", "parameters <= 60%"]) == 0
    assert (tmp_path / "refined.json").stat().st_mtime_ns == before
    assert main([*command, "--budget", "parameters <= 1K"]) == 2
    assert "the least that any child costs" in capsys.readouterr().err
    assert replace(plan, whole=None) != plan
