"""Beyond sums of scores: whole children measured, and never a worse plan than the best sum."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockwright.cli.main import main
from blockwright.errors import InputError
from blockwright.library import read_library
from blockwright.model.divergence import kl_divergence
from blockwright.model.parent import Parent, load_model, open_parent
from blockwright.pipeline import refine
from blockwright.pipeline.inputs import read_text, windows_of
from blockwright.pipeline.kept import Kept, pair_terms
from blockwright.pipeline.library import build_library
from blockwright.pipeline.recipe import read_recipe
from blockwright.pipeline.run import library_order
from blockwright.pipeline.search import SearchOrder
from blockwright.pipeline.trials import windows_to_choose_by
from blockwright.pipeline.wholes import Wholes
from blockwright.search.plan import read_plan
from blockwright.spec import FP32, Candidate, GatedFFN, Model, NoOp, parse_format, with_candidate, with_format
from blockwright.strict import to_data


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
    small_run: Path, tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"tokens": 512, "rounds": 2, "pool_size": 3, "pairs": 2, "heal_tokens": 256}
    recipe = write_recipe(budgets=["parameters@chat <= 60%"], refine=section, score={"tokens": 512, "races": True})
    folder, profile = tmp_path / "run", small_run / "run" / "profile"
    assert main(["run", str(recipe), "--profile", str(profile), "--out", str(folder)]) == 0
    best_sum, refined = read_plan(folder / "plan.json"), read_plan(folder / "refined.json")
    assert best_sum.whole is None and refined.whole is not None
    assert refined.score >= best_sum.score - 1e-12
    record = json.loads((folder / "refine.json").read_text())
    plans, windows = record["plans"], record["windows"]
    assert plans[0]["way"] == "best sum" and plans[0]["windows"] == windows
    assert len([plan for plan in plans if plan["is_chosen"]]) == 1
    chosen = next(plan for plan in plans if plan["is_chosen"])
    assert chosen["healed_kl"] is not None
    again = record["again"]
    assert again["windows"] == windows, "as many windows as chose"
    assert (again["kl"], again["best_sum_kl"]) == (to_data(refined.whole.kl), to_data(refined.whole.best_sum_kl))
    assert again["difference"]["value"] == pytest.approx(refined.whole.kl.value - refined.whole.best_sum_kl.value)
    assert refined.whole.plans_measured == len(plans) >= 3
    assert {line.quantity: line.spent <= line.limit * (1 + 1e-9) for line in refined.budgets} == {"parameters": True}
    assert json.loads((folder / "realised" / "config.json").read_text())["num_hidden_layers"] == 2
    assert "measured" in capsys.readouterr().out


def _command(folder: Path, text: str, out: Path) -> list[str]:
    """Refines what a run left in its folder, on 16 windows and as many to measure the chosen plan on again."""
    command = ["refine", str(folder / "library"), "--scores", str(folder / "scores.parquet"), "--text", text]
    command += ["--profile", str(folder / "profile"), "--load", "chat=1x16+16", "--window", "32"]
    return [*command, "--tokens", "512", "--rounds", "2", "--pool", "2", "--out", str(out)]


def test_refining_by_hand_teaches_budgets_and_keeps_what_was_measured(
    small_run: Path, small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = _command(small_run / "run", str(small_text), tmp_path / "refined.json")
    assert main([*command, "--budget", "parameters <= 60%", "--json"]) == 0
    plan = read_plan(tmp_path / "refined.json")
    assert json.loads(capsys.readouterr().out)["whole"]["kl"]["value"] == plan.whole.kl.value  # type: ignore[union-attr]
    assert plan.whole is not None
    plans = json.loads((tmp_path / "refine.json").read_text())["plans"]
    assert [one["kl"] for one in plans if one["is_chosen"]] == [min(one["kl"] for one in plans if one["windows"] == 16)]
    before = (tmp_path / "refined.json").stat().st_mtime_ns
    assert main([*command, "--budget", "parameters <= 60%"]) == 0
    assert (tmp_path / "refined.json").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*command, "--budget", "parameters <= 1K"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "the least that any child costs" in printed.err
    assert main([*command, "--budget", "parameters <= 1K", "--json"]) == 2
    reasons = json.loads(capsys.readouterr().out)
    assert (reasons["status"], reasons["moves"][0]["text"]) == ("infeasible", "parameters <= 1K")
    assert replace(plan, whole=None) != plan


def test_the_command_line_chooses_backend_tolerance_and_extrapolation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[SearchOrder] = []

    def refine_plan(parent: object, paths: object, profiles: object, search: SearchOrder, order: object) -> None:
        orders.append(search)

    monkeypatch.setattr(refine, "refine_plan", refine_plan)
    monkeypatch.setattr("blockwright.model.parent.open_parent", lambda name: name)
    monkeypatch.setattr("blockwright.pipeline.tables.print_plan", lambda plan: None)
    command = [*_command(tmp_path, "python", tmp_path / "out.json"), "--parent", "x", "--budget", "memory <= 1MB"]
    assert main(command) == 0
    assert main([*command, "--backend", "torch", "--tolerance", "0.5", "--extrapolate"]) == 0
    told = [(order.backend, order.tolerance, order.may_extrapolate) for order in orders]
    assert told == [("onnxruntime", 0.0, False), ("torch", 0.5, True)]
    assert main([*command, "--tolerance", "-1"]) == 2


def test_the_windows_that_choose_and_those_that_judge_the_choice_are_others(write_recipe: Callable[..., Path]) -> None:
    recipe = read_recipe(write_recipe())
    parent, text = open_parent(recipe.parent), read_text(recipe.text)
    for length, num_tokens, wanted in ((32, 512, 16), (8, 128, 16), (64, 10**6, None)):
        windows, num_windows = windows_to_choose_by(parent, text, length=length, num_tokens=num_tokens, seed=3)
        ids = [tuple(window) for window in windows.ids_NT.tolist()]
        choosing, judging = set(ids[:num_windows]), set(ids[num_windows:])
        assert wanted in (None, num_windows) and len(judging) in (num_windows, num_windows + 1)
        assert not choosing & judging
    with pytest.raises(InputError, match="2 windows of 32 tokens, half of them to choose by"):
        windows_to_choose_by(parent, text, length=32, num_tokens=32, seed=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Additive(Wholes):
    """A model in which what candidates lose adds up on every window, hard windows and easy ones."""

    def child(self, spec: Model) -> Any:
        return spec

    def losses(self, children: Any, start: int, end: int, on_child: object = None) -> list[list[float]]:
        return [[self._loss(spec, window) for window in range(start, end)] for spec in children]

    def changes(self, spec: Model, candidates: Any, end: int, on_candidate: object = None) -> dict[Candidate, float]:
        def mean(spec: Model) -> float:
            return float(np.mean([self._loss(spec, window) for window in range(end)]))

        return {c: mean(with_candidate(spec, c)) - mean(spec) for c in candidates}

    def _loss(self, spec: Model, window: int) -> float:
        return sum(
            random.Random(f"{layer} {name} {window}").random()
            for layer, (block, own) in enumerate(zip(spec.layers, self.library.parent.layers, strict=True))
            for name in ("mixer", "ffn")
            if getattr(block, name) != getattr(own, name)
        )


@pytest.mark.parametrize("end", [2, 3, 7])
def test_where_losses_add_up_pairs_lose_nothing_beyond_their_sums_whatever_the_windows(
    end: int, wholes: Wholes, tmp_path: Path
) -> None:
    parent = wholes.library.parent
    taken = [c for c in wholes.library.candidates if c.variant == NoOp()]
    pairs = list(itertools.combinations(taken, 2))
    additive = _Additive(model=wholes.model, library=wholes.library, folder=wholes.folder, ids_NT=wholes.ids_NT)
    terms = pair_terms(Kept(wholes=additive, work=tmp_path), parent, pairs, end)
    assert [(term.first, term.second) for term in terms] == pairs
    assert [term.score for term in terms] == pytest.approx([0.0] * len(pairs), abs=1e-12)


def test_pairs_of_a_real_model_lose_what_both_lose_less_what_each_does(wholes: Wholes, tmp_path: Path) -> None:
    parent = wholes.library.parent
    first, second = (c for c in wholes.library.candidates if c.variant == NoOp() and c.part == "ffn")
    int4 = replace(second, variant=GatedFFN(width=32, weights=parse_format("int4")))
    done: list[int] = []
    kept = Kept(wholes=wholes, work=tmp_path)
    terms = pair_terms(kept, parent, [(first, second), (first, int4)], 5, on_pair=lambda: done.append(1))
    assert len(done) == 2
    for term, other in zip(terms, (second, replace(second, variant=GatedFFN(width=32))), strict=True):
        specs = [with_candidate(parent, c) for c in (first, other)]
        losses = wholes.losses([wholes.child(each) for each in (with_candidate(specs[0], other), *specs)], 0, 5)
        both, one, two = map(np.mean, losses)
        assert term.score == pytest.approx(both - one - two, rel=1e-3, abs=1e-6)
    assert pair_terms(kept, parent, [], 5) == ()


class _Killed(Exception):
    """What a kill looks like from within."""


@dataclass(slots=True, kw_only=True)
class _Hand:
    """Counts what is measured, and kills after some more calls."""

    done: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """Plans by the windows that they were measured on, and the like."""
    calls_left: int = 10**9

    def count(self, what: str, start: int, end: int, number: int = 1) -> None:
        if self.calls_left == 0:
            raise _Killed
        self.calls_left -= 1
        self.done[what, start, end] += number


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> _Hand:
    hand, real = _Hand(), (Wholes.losses, Wholes.changes, Wholes.heal)

    def losses(self: Wholes, children: Any, start: int, end: int) -> Any:
        hand.count("losses", start, end, len(children))
        return real[0](self, children, start, end)

    def changes(self: Wholes, spec: Model, candidates: Any, end: int, *rest: Any) -> Any:
        hand.count("changes", 0, end)
        return real[1](self, spec, candidates, end, *rest)

    def heal(self: Wholes, child: Any, batches: Any, *rest: Any) -> None:
        hand.count("heal", 0, len(batches))
        real[2](self, child, batches, *rest)

    for name, function in (("losses", losses), ("changes", changes), ("heal", heal)):
        monkeypatch.setattr(Wholes, name, function)
    return hand


def test_a_refinement_killed_again_and_again_measures_nothing_twice_and_ends_the_same(
    small_run: Path, small_text: Path, tmp_path: Path, hand: _Hand
) -> None:
    outs = [tmp_path / name / "refined.json" for name in ("whole", "killed")]
    flags = ["--budget", "parameters <= 60%", "--pairs", "2", "--heal-tokens", "256"]
    commands = [[*_command(small_run / "run", str(small_text), out), *flags] for out in outs]
    assert main(commands[0]) == 0
    wanted = hand.done.copy()
    assert {what for what, _, _ in wanted} == {"losses", "changes", "heal"}
    hand.done.clear()
    num_kills, code = 0, None
    while code is None and num_kills < 30:
        hand.calls_left = 3
        try:
            code = main(commands[1])
        except _Killed:
            num_kills += 1
    assert code == 0
    assert num_kills >= 3
    healed = {key for key in wanted if key[0] == "heal"}
    assert {key: n for key, n in hand.done.items() if key not in healed} == {
        key: n for key, n in wanted.items() if key not in healed
    }
    assert sum(hand.done[key] - wanted[key] for key in healed) <= num_kills, "killed before it was measured"
    for name in ("refined.json", "refine.json"):
        assert (outs[0].parent / name).read_text() == (outs[1].parent / name).read_text()
    assert not list(outs[1].parent.glob(".refine-*"))
