"""The command `search` on devices that nobody has measured: a server's GPU and an edge board, by their datasheets."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.cost import Load, Quantity
from blockwright.hw_profiles.folder import measured_profiles, read_profile
from blockwright.hw_profiles.profile import parent_of
from blockwright.profiler.cost_model import part_costs
from blockwright.search.plan import Promise, read_plan
from blockwright.search.scores import Score, ScoreTable, write_scores
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import Format, Model, stored_as, with_format
from blockwright.statistics import Estimate
from blockwright.units import parse_quantity

PARENT = parent_of(read_profile(measured_profiles()[0]))
"""The demo's."""
CHAT = Load(batch=1, prompt_tokens=128, new_tokens=128)
DEVICES = ("h100_sxm", "jetson_agx_orin")
FORMATS = (Format(name="fp32"), Format(name="int4", group_size=32))
BUDGETS = {
    "time_per_token@h100_sxm:chat": "4.1ms",
    "time_per_token@jetson_agx_orin:chat": "1.05ms",
    "memory@jetson_agx_orin:chat": "4GB",
    "energy@jetson_agx_orin:chat": "6J",
}


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Of the demo's parent, in fp32 and int4; its own parts lose nothing in fp32."""
    generator, found = random.Random(0), []
    for weights, candidate in itertools.product(FORMATS, candidates(PARENT, SpaceSettings())):
        is_own = weights == FORMATS[0] and candidate.variant == getattr(PARENT.layers[candidate.layer], candidate.part)
        loss = 0.0 if is_own else 0.1 + generator.random()
        stored = replace(candidate, variant=stored_as(candidate.variant, weights))
        estimate = Estimate(value=loss, low=loss, high=loss, num_values=4)
        found.append(Score(candidate=stored, metric="kl", estimate=estimate))
    table = {score.candidate: score for score in found}  # nothing at all has no format, and stands there once
    write_scores(ScoreTable(parent=PARENT, scores=tuple(table.values())), tmp_path / "scores.parquet")
    return tmp_path / "scores.parquet"


def _search(scores: Path, output: Path, budgets: dict[str, str], *more: str) -> int:
    words = [word for name in DEVICES for word in ("--profile", name)]
    words += [word for text, limit in budgets.items() for word in ("--budget", f"{text} <= {limit}")]
    return main(["search", "--scores", str(scores), *words, "--out", str(output), "--frontier", "0", *more])


@pytest.mark.parametrize("formats", [["fp32"], ["fp32", "int4"]])
def test_a_plan_for_two_datasheets_is_proven_and_keeps_its_budgets_at_the_far_end(
    scores: Path, tmp_path: Path, formats: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for weights in formats for word in ("--format", weights)]
    assert _search(scores, tmp_path / "plan.json", BUDGETS, *flags) == 0
    printed, plan = capsys.readouterr().out, read_plan(tmp_path / "plan.json")
    assert plan.status == "optimal" and plan.child != plan.parent
    assert plan.devices == {name: name for name in DEVICES}
    for text, limit in BUDGETS.items():
        quantity, _, place = text.partition("@")
        promise = next(p for p in plan.promises if (p.quantity, f"{p.device}:{p.load}") == (quantity, place))
        unit = {"m": "s", "G": "bytes"}.get(limit.rstrip("sBJ")[-1], "J")
        assert promise.child.high <= parse_quantity(limit, unit, "limit")
        assert promise.child.origin == "modelled"
        assert promise.child.high > 1.3 * promise.child.value > 1.5 * promise.child.low
        assert promise.child.value == pytest.approx(_whole(plan.child, plan.parent, promise), rel=1e-9)
    assert " to " in printed and "h100_sxm" in printed and "jetson_agx_orin" in printed


def _whole(child: Model, parent: Model, promise: Promise) -> float:
    return part_costs(read_profile(promise.device), parent, CHAT, promise.quantity).of_model(child).value


def test_what_no_child_can_keep_is_told_with_what_would_fit(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = {"time_per_token@h100_sxm:chat": "1ms"}
    assert _search(scores, tmp_path / "plan.json", budgets, "--json") == BAD_INPUT
    captured = capsys.readouterr()
    assert "time_per_token@h100_sxm:chat" in captured.err
    assert json.loads(captured.out)


def test_a_measured_device_and_a_datasheet_stand_side_by_side(scores: Path, tmp_path: Path) -> None:
    words = ["--profile", measured_profiles()[0], "--profile", "raspberry_pi_5", "--load", "chat=1x128+128"]
    budgets = ["--budget", f"time_per_token@{measured_profiles()[0]}:chat <= 75%"]
    budgets += ["--budget", "time_per_token@raspberry_pi_5:chat <= 1.6ms"]
    out = ["--out", str(tmp_path / "plan.json"), "--frontier", "0"]
    assert main(["search", "--scores", str(scores), *words, *budgets, *out]) == 0
    plan = read_plan(tmp_path / "plan.json")
    widths = {p.device: p.child.high / p.child.low for p in plan.promises if p.quantity == "time_per_token"}
    assert widths[measured_profiles()[0]] < 1.2 < widths["raspberry_pi_5"]


def test_the_parent_in_another_format_is_cheaper_where_memory_binds() -> None:
    pi = read_profile("raspberry_pi_5")
    fp32, int4 = (with_format(PARENT, weights) for weights in (Format(name="fp32"), Format(name="int4", group_size=32)))
    times = [part_costs(pi, model, CHAT, "time_per_token").of_model(model).value for model in (fp32, int4)]
    assert times[1] < 0.7 * times[0]


def test_a_share_on_a_datasheet_is_one_of_the_parents_own_far_end(scores: Path, tmp_path: Path) -> None:
    """The device's interval is wide, and the same for both: it must not shut out every child."""
    words = [word for name in DEVICES for word in ("--profile", name)]
    words += ["--budget", "time_per_token@jetson_agx_orin:chat <= 70%", "--budget", "throughput@h100_sxm:chat >= 120%"]
    assert main(["search", "--scores", str(scores), *words, "--out", str(tmp_path / "plan.json")]) == 0
    plan = read_plan(tmp_path / "plan.json")
    shares: list[tuple[str, Quantity, float]] = [
        ("jetson_agx_orin", "time_per_token", 0.7),
        ("h100_sxm", "request_latency", 1 / 1.2),
    ]
    for name, quantity, share in shares:
        device = read_profile(name)
        child, parent = (part_costs(device, PARENT, CHAT, quantity).of_model(m) for m in (plan.child, PARENT))
        assert child.high <= share * parent.high * (1 + 1e-9)
    assert plan.child != PARENT


@pytest.mark.parametrize("budget", ["time_per_token@chat <= 60%", "memory@chat <= 1kB", "parameters@chat <= 90%"])
def test_a_search_for_tensorrt_says_how_its_times_are_measured_whatever_the_budget(
    budget: str, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--profile", "rtx_4090", "--budget", budget, "--backend", "tensorrt"]
    assert main(["search", "--scores", str(scores), *words, "--out", str(tmp_path / "plan.json")]) == BAD_INPUT
    told = capsys.readouterr().err
    assert "no times of it" in told and "blockwright profile --device cuda --backend tensorrt" in told
    assert "Loosen" not in told


def test_a_search_for_tensorrt_on_a_cpu_is_refused(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--profile", measured_profiles()[0], "--budget", "memory@chat <= 10GB", "--backend", "tensorrt"]
    assert main(["search", "--scores", str(scores), *words, "--out", str(tmp_path / "plan.json")]) == BAD_INPUT
    told = " ".join(capsys.readouterr().err.split())
    assert "error in --backend tensorrt" in told and "expected a profile of an NVIDIA GPU" in told
