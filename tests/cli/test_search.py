"""The command `search`: devices, batches, rules, and what it says where there is no plan."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.cost import Cost, Quantity
from blockwright.hw_profiles.folder import write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.profiler.cost_model import predict
from blockwright.report.figures import frontier_figure
from blockwright.search.plan import read_plan
from blockwright.search.scores import Score, ScoreTable, write_scores
from blockwright.spec import Attention, LinearFFN, LinearMixer, NoOp, with_candidate
from searching import CHAT, LOADS, SERVE, Run, budget_words


def test_two_devices_two_loads_and_a_batch_to_decide_on(
    search: Run, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    budgets = budget_words(
        "memory@server:serve <= 700kB", "throughput@server:serve >= 4.2ktok/s", "time_per_token@edge:chat <= 80%"
    )
    code, printed, _ = search(*budgets, *LOADS, "--pool", "3", "--differ", "2", devices=2)
    assert code == 0
    plan = read_plan(tmp_path / "plan.json")
    assert plan.devices == {"server": "big-one", "edge": "small-one"}
    assert plan.batches == {"batch of serve on server": 2}
    costs = predict(profiles["server"], plan.child, SERVE[1])
    assert costs["memory"].high <= 700e3 and costs["throughput"].low >= 4200
    edge = [predict(profiles["edge"], model, CHAT)["time_per_token"] for model in (plan.parent, plan.child)]
    assert edge[1].high <= 0.8 * edge[0].value
    assert len(plan.pool) == 3 and plan.pool[1].layers_differ >= 2
    for words in (
        "on server (big-one)",
        "on edge (small-one)",
        "The batch of serve on server is 2.",
        "The pool",
        "proven",
    ):
        assert words in printed
    assert "≥ 4.2 ktok/s" in printed and "≤ 80 %" in printed


def test_what_is_printed_as_json_is_the_plan(search: Run, tmp_path: Path) -> None:
    code, printed, _ = search(*budget_words("memory@chat <= 80%"), *LOADS[:2], "--json", frontier=3)
    assert code == 0
    assert json.loads(printed) == json.loads((tmp_path / "plan.json").read_text())
    assert read_plan(tmp_path / "plan.json").frontier


def test_a_frontier_lies_between_any_two_quantities(
    search: Run, profiles: dict[str, Profile], make_table: Callable[..., ScoreTable], tmp_path: Path
) -> None:
    """Against every child there is: within the other budget and the bound on the score."""
    profile = profiles["server"]  # on which small matrices are slow, so that memory and time do not go together
    slow = (replace(row, time_s=4 * row.time_s) if row.variant == "linear" else row for row in profile.times)
    profile = replace(profile, times=tuple(slow))
    write_profile(profile, tmp_path / "server")
    children = _every_child(make_table(metrics=["kl"]), profile)
    disk = 0.9 * children[0][1]["disk"].value
    between = ["--along", "memory@chat", "--against", "throughput@chat", "--most-score", "1.5"]
    budgets = budget_words("memory@chat <= 80%", "disk@chat <= 90%")
    code, printed, _ = search(*budgets, *LOADS[:2], *between, frontier=6)
    assert code == 0
    plan = read_plan(tmp_path / "plan.json")
    axes, allowed = plan.frontier_axes, [c for s, c in children if s <= 1.5 and c["disk"].high <= disk]
    assert axes is not None and axes.against is not None
    assert (axes.along.quantity, axes.against.quantity, axes.most_score) == ("memory", "throughput", 1.5)
    assert len(plan.frontier) >= 2
    spread = max(c["request_latency"].high for c in allowed) - min(c["request_latency"].high for c in allowed)
    for point in plan.frontier:
        best = max(c["throughput"].low for c in allowed if c["memory"].high <= point.limit * (1 + 1e-9))
        assert point.against is not None and point.score <= 1.5 + 1e-9
        assert best * (1 - 1e-9) <= point.bound * (1 + 1e-9) and point.against <= best * (1 + 1e-9)
        assert CHAT.new_tokens / point.against - CHAT.new_tokens / best <= 3e-3 * spread
        twin = min(children, key=lambda child: abs(child[0] - point.score))[1]
        assert (twin["memory"].high, twin["throughput"].low) == pytest.approx((point.spent, point.against))
    assert axes.plan_along == pytest.approx(predict(profile, plan.child, CHAT)["memory"].high)
    for words in ("memory at chat", "throughput at chat", "sum of scores (KL, nats per token)", "proven", "ktok/s"):
        assert words in printed[printed.index("The frontier") :]
    drawn = frontier_figure(plan)
    assert "memory at chat, promised" in drawn and "throughput at chat, promised" in drawn


def test_a_frontier_along_a_budget_by_its_text_moves_that_budget(
    search: Run, profiles: dict[str, Profile], make_table: Callable[..., ScoreTable], tmp_path: Path
) -> None:
    children = _every_child(make_table(metrics=["kl"]), profiles["server"])
    budgets = ("throughput@chat >= 3ktok/s", "memory@chat <= 80%")
    assert search(*budget_words(*budgets), *LOADS[:2], "--along", budgets[0], frontier=5)[0] == 0
    plan, memory = read_plan(tmp_path / "plan.json"), 0.8 * children[0][1]["memory"].value
    assert plan.frontier_axes is not None and plan.frontier_axes.against is None
    assert len(plan.frontier) >= 3
    assert min(p.spent for p in plan.frontier) < 3e3 < max(p.spent for p in plan.frontier)
    for point in plan.frontier:
        fits = [
            s for s, c in children if c["memory"].high <= memory and c["throughput"].low >= point.limit * (1 - 1e-9)
        ]
        assert point.score == pytest.approx(min(fits)) and point.is_proven


def _every_child(table: ScoreTable, profile: Profile) -> list[tuple[float, dict[Quantity, Cost]]]:
    """Sums of scores and what children cost, the parent first."""
    groups: dict[tuple[int, str], list[Score]] = {}
    for score in table.scores:
        groups.setdefault((score.candidate.layer, score.candidate.part), []).append(score)
    known: dict[tuple[str, ...], dict[Quantity, Cost]] = {}
    found = []
    for scores in itertools.product(*groups.values()):
        child = reduce(with_candidate, [score.candidate for score in scores], table.parent)
        parts = tuple(sorted(f"{b.mixer}" for b in child.layers) + sorted(f"{b.ffn}" for b in child.layers))
        if parts not in known:  # layers cost alike in any order
            known[parts] = predict(profile, child, CHAT)
        found.append((sum(score.estimate.value for score in scores), known[parts]))
    return sorted(found, key=lambda child: child[0])


def test_without_a_plan_the_reasons_come_as_json_and_in_words(search: Run, tmp_path: Path) -> None:
    budgets = budget_words("parameters@chat <= 30%", "memory@chat >= 90%", "time_per_token@chat <= 99%")
    code, printed, complaint = search(*budgets, *LOADS[:2], "--json")
    assert code == 2
    reasons = json.loads(printed)
    assert reasons["status"] == "infeasible"
    assert reasons["clashing"] == ["parameters@chat <= 30%", "memory@chat >= 90%"]
    assert [move["text"] for move in reasons["moves"]] == budgets[1::2]
    assert 0 < reasons["loosening"] < 1
    assert "each alone can be met, but not all together: parameters@chat <= 30%; memory@chat >= 90%" in complaint
    assert "with the others kept, parameters@chat <= 30% would have to be" in complaint
    assert not (tmp_path / "plan.json").exists()
    again = search(*budgets, *LOADS[:2])
    assert (again[0], again[1]) == (2, "")


def test_rules_hold_in_the_plan(search: Run, tmp_path: Path) -> None:
    rules = ["--keep-first", "1", "--forbid", "*-mixer-none", "--force", "layer-01-ffn-linear", "--shapes", "2"]
    assert search(*budget_words("parameters@chat <= 75%"), *LOADS[:2], *rules)[0] == 0
    plan = read_plan(tmp_path / "plan.json")
    assert plan.child.layers[0] == plan.parent.layers[0]
    assert plan.child.layers[1].ffn == LinearFFN()
    assert all(block.mixer != NoOp() for block in plan.child.layers)
    assert len(set(plan.child.layers)) == 2


def test_one_kind_of_block_removed_side_by_side_for_an_engine(search: Run, tmp_path: Path) -> None:
    rules = ["--homogeneous", "--contiguous", "--servable-by", "vllm,transformers"]
    assert search(*budget_words("parameters@chat <= 60%"), *LOADS[:2], *rules)[0] == 0
    layers = read_plan(tmp_path / "plan.json").child.layers
    assert len({block for block in layers if (block.mixer, block.ffn) != (NoOp(), NoOp())}) == 1
    assert any(isinstance(block.mixer, Attention) for block in layers)
    assert not any(isinstance(block.mixer, LinearMixer) or isinstance(block.ffn, LinearFFN) for block in layers)


def test_scores_are_of_the_metric_named(search: Run, tmp_path: Path) -> None:
    for metric in ("kl", "lm_loss"):
        assert search(*budget_words("parameters@chat <= 60%"), *LOADS[:2], "--metric", metric)[0] == 0
        assert read_plan(tmp_path / "plan.json").metric == metric


def test_gigabytes_are_no_gibibytes(search: Run, tmp_path: Path) -> None:
    limits = []
    for amount in ("600 kB", "600 KiB"):
        assert search(*budget_words(f"memory@chat <= {amount}"), *LOADS[:2])[0] == 0
        limits.append(read_plan(tmp_path / "plan.json").budgets[0].limit)
    assert limits == [600e3, 600 * 1024]


def test_a_device_is_called_like_its_profile_where_it_is_given_no_name(
    tmp_path: Path, search: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    command = ["search", "--scores", str(tmp_path / "scores.parquet"), "--profile", str(tmp_path / "edge")]
    assert main([*command, "--budget", "memory@small-one <= 80%", *LOADS[:2], "--frontier", "0", "-o", str(plan)]) == 0
    assert read_plan(plan).devices == {"small-one": "small-one"}


def test_a_broken_manifest_does_not_stop_a_search(search: Run, tmp_path: Path) -> None:
    words = [*budget_words("memory@chat <= 80%"), *LOADS[:2]]
    assert search(*words)[0] == 0
    (tmp_path / "manifest.json").write_text('{"search": {"key"')
    code, _, said = search(*words)
    assert code == 0 and "manifest.json is passed over" in said
    assert "passed over" not in search(*words)[2]


def test_scores_of_any_size_are_printed_in_few_digits(
    search: Run, make_table: Callable[..., ScoreTable], tmp_path: Path
) -> None:
    table = make_table()
    huge = [replace(s, estimate=replace(s.estimate, value=1e300 * s.estimate.value, high=1e301)) for s in table.scores]
    write_scores(replace(table, scores=tuple(huge)), tmp_path / "scores.parquet")
    code, printed, _ = search(*budget_words("parameters@chat <= 60%"), *LOADS[:2], "--compare", frontier=3)
    assert code == 0 and "e+300" in printed
    assert not re.search(r"\d{20}", printed)


def test_a_size_is_shown_in_the_units_it_was_asked_in(search: Run) -> None:
    assert "≤ 600 KiB" in search(*budget_words("memory@chat <= 600KiB"), *LOADS[:2])[1]


def test_a_plan_within_its_tolerance_says_so(search: Run) -> None:
    printed = search(*budget_words("parameters@chat <= 60%"), *LOADS[:2], "--tolerance", "1")[1]
    assert "the best found within the tolerance of 1 asked for" in " ".join(printed.split())
    assert "time limit" not in printed
