"""The command `predict`: plans, checkpoints, measured devices and datasheets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blockwright.cli.main import BAD_INPUT, main
from blockwright.cost import UNIT_OF, Load
from blockwright.hw_profiles.folder import read_profile, write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.profiler.cost_model import predict
from blockwright.search.plan import Plan, read_plan
from blockwright.search.scores import ScoreTable, write_scores
from blockwright.spec import FP32, parse_format, with_format

REPOSITORY = Path(__file__).parents[2]
DEMO = str(REPOSITORY / "recipes" / "demo-parent")
CHAT = Load(batch=1, prompt_tokens=40, new_tokens=24)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program; gives its exit code, what it printed and what it complained of."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def plan(tmp_path: Path, make_profile: Callable[..., Profile], make_table: Callable[..., ScoreTable], run: Run) -> Plan:
    """Beside the profile that it was made for."""
    write_profile(make_profile([CHAT], name="edge"), tmp_path / "edge")
    write_scores(make_table(), tmp_path / "scores.parquet")
    words = ["--budget", "time_per_token@chat <= 60%", "--load", "chat=1x40+24", "--frontier", 0]
    code, _, _ = run(
        "search", "--scores", tmp_path / "scores.parquet", "--profile", tmp_path / "edge", *words, "--out",
        tmp_path / "plan.json",
    )  # fmt: skip
    assert code == 0
    return read_plan(tmp_path / "plan.json")


def test_a_plan_costs_what_it_was_promised_to(plan: Plan, run: Run, tmp_path: Path) -> None:
    code, printed, _ = run("predict", tmp_path / "plan.json", "--profile", tmp_path / "edge", "--json")
    assert code == 0
    records = json.loads(printed)
    told = {one["quantity"]: one for one in records}
    assert set(told) == set(UNIT_OF)
    assert all(one["load"] == {"name": "chat", "batch": 1, "prompt_tokens": 40, "new_tokens": 24} for one in records)
    for promise in plan.promises:
        one = told[promise.quantity]
        assert one["model"]["value"] == pytest.approx(promise.child.value, rel=1e-12)
        assert one["parent"]["value"] == pytest.approx(promise.parent.value, rel=1e-12)
        assert (one["device"], one["profile"], one["unit"]) == ("edge", "edge", UNIT_OF[promise.quantity])


def test_several_devices_and_loads_stand_in_tables_with_intervals_and_origins(
    plan: Plan, run: Run, tmp_path: Path
) -> None:
    devices = ["--profile", f"here={tmp_path / 'edge'}", "--profile", "h100_sxm"]
    code, printed, _ = run("predict", tmp_path / "plan.json", *devices)
    assert code == 0 and plan.child != plan.parent
    here, there = printed.split("h100_sxm, by its datasheet")
    assert "here (edge)" in here and "datasheet" not in here
    for words in ("Time per token", "Energy", "Memory", "modelled", "counted", " to ", "parent"):
        assert words in here and words in there


def test_a_checkpoint_is_told_of_alone_or_beside_a_parent(run: Run) -> None:
    words = ["--profile", "jetson_agx_orin", "--load", "serve=8x512+128", "--format", "int4", "--json"]
    _, alone, _ = run("predict", "--parent", DEMO, *words)
    _, beside, _ = run("predict", DEMO, "--parent", DEMO, *words)
    for one, two in zip(json.loads(alone), json.loads(beside), strict=True):
        assert one["parent"] is None
        assert two["parent"] == two["model"] == one["model"]
    parent = read_profile("amd-epyc-2c-0c4430").model
    assert parent is not None
    costs = predict(
        read_profile("jetson_agx_orin"),
        with_format(parent, parse_format("int4")),
        Load(batch=8, prompt_tokens=512, new_tokens=128),
    )
    assert {one["quantity"]: one["model"]["value"] for one in json.loads(alone)} == {
        quantity: pytest.approx(cost.value) for quantity, cost in costs.items()
    }


def test_a_format_that_only_other_runtimes_have_is_told_by_datasheets(run: Run) -> None:
    words = ["--profile", "raspberry_pi_5", "--json", "--format"]
    fp32, bf16 = (json.loads(run("predict", DEMO, *words, weights)[1]) for weights in (str(FP32), "bf16"))
    assert bf16[0]["quantity"] == "time_per_token"
    assert bf16[0]["model"]["value"] < 0.9 * fp32[0]["model"]["value"]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ([], "model"),
        (["{plan}", "--format", "int4"], "--format"),
        (["{plan}", "--parent", DEMO], "--parent"),
        (["{plan}", "--load", "chat=9x9+9"], "load"),
        ([DEMO, "--format", "int5"], "format"),
        (["no-such.json"], "no-such.json"),
    ],
)
def test_what_cannot_be_told_is_refused(words: list[str], field: str, plan: Plan, run: Run, tmp_path: Path) -> None:
    given = [word.format(plan=tmp_path / "plan.json") for word in words]
    code, printed, error = run("predict", *given, "--profile", tmp_path / "edge")
    assert (code, printed) == (BAD_INPUT, "")
    assert field in error.splitlines()[0]


def test_an_unknown_device_lists_those_there_are(run: Run) -> None:
    code, _, error = run("predict", DEMO, "--profile", "h100")
    assert code == BAD_INPUT and "h100_sxm" in error and "amd-epyc" in error
