"""Plans as files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cost import Cost, Load
from blockwright.errors import InputError
from blockwright.search.plan import BudgetLine, FrontierPoint, Plan, PoolPlan, Promise, read_plan, write_plan
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Rope, Window

PARENT = Model(
    family="qwen3",
    vocab_size=96,
    hidden_size=64,
    num_heads=4,
    head_dim=32,
    max_positions=256,
    norm_eps=1e-6,
    rope=Rope(theta=1e6, scaling="linear", parameters=(("factor", 2.0),)),
    activation="silu",
    has_tied_embeddings=False,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=True,
    layers=(Block(mixer=Attention(num_kv_heads=4, reach=Window(num_tokens=32)), ffn=GatedFFN(width=128)),) * 3,
)
CHILD = replace(
    PARENT,
    layers=(
        Block(mixer=Attention(num_kv_heads=1), ffn=LinearFFN()),
        Block(mixer=LinearMixer(), ffn=NoOp()),
        Block(mixer=NoOp(), ffn=GatedFFN(width=32)),
    ),
)
COST = Cost(value=2e-3, low=1e-3, high=3e-3, origin="interpolated")
PLAN = Plan(
    schema_version=2,
    status="feasible",
    parent=PARENT,
    child=CHILD,
    score=0.5,
    bound=0.4,
    metric="lm_loss",
    profile="made-up",
    devices={"server": "made-up", "phone": "another"},
    backend="onnxruntime",
    format="fp32",
    loads={"chat": Load(batch=1, prompt_tokens=40, new_tokens=24)},
    batches={"batch of chat on phone": 4},
    promises=(
        Promise(quantity="time_per_token", device="server", load="chat", parent=COST, child=COST),
        Promise(quantity="throughput", device="phone", load="chat", parent=COST, child=COST),
    ),
    budgets=(
        BudgetLine(
            text="time_per_token <= 3ms",
            quantity="time_per_token",
            device="server",
            load="chat",
            limit=3e-3,
            is_least=False,
            share=None,
            spent=2e-3,
            is_binding=True,
            price=250.0,
        ),
    ),
    frontier=(FrontierPoint(limit=1e-3, spent=1e-3, score=1.0, bound=1.0),),
    pool=(
        PoolPlan(child=CHILD, score=0.5, bound=0.4, layers_differ=0),
        PoolPlan(child=PARENT, score=0.75, bound=0.5, layers_differ=3),
    ),
)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == PLAN


def test_the_gap_is_how_much_better_a_choice_might_be(tmp_path: Path) -> None:
    assert PLAN.gap == pytest.approx(0.2)
    assert replace(PLAN, status="optimal").gap == 0
    assert replace(PLAN, score=0.0, bound=0.0).gap == 0
    write_plan(PLAN, tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["gap"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"status": "perfect"}, "status"),
        ({"schema_version": 3}, "schema_version"),
        ({"schema_version": "2"}, "schema_version"),
        ({"surplus": 1}, "surplus"),
        ({"score": "low"}, "score"),
        ({"child": {"family": "llama"}}, "child"),
        ({"budgets": [{"text": "memory <= 1GB"}]}, r"budgets\[0\]"),
    ],
)
def test_a_plan_with_a_wrong_field_is_refused_by_its_name(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    path = tmp_path / "plan.json"
    write_plan(PLAN, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=complaint):
        read_plan(path)


@pytest.mark.parametrize("version", [1, 3, None])
def test_a_plan_of_another_version_says_what_to_do(version: int | None, tmp_path: Path) -> None:
    """Before its fields are looked at, which were others then."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema_version": version, "status": "optimal", "weights": "fp32"}))
    with pytest.raises(
        InputError, match=rf"plan\.json: schema_version: got {version}; expected 2\. Search again"
    ) as caught:
        read_plan(path)
    assert "another version of Blockwright" in caught.value.remedy


def test_every_answer_says_how_far_it_is_proven(tmp_path: Path) -> None:
    assert [(one.is_proven, one.gap) for one in PLAN.pool] == [
        (False, pytest.approx(0.2)),
        (False, pytest.approx(1 / 3)),
    ]
    least = FrontierPoint(limit=1e-3, spent=1e-3, score=1.0, bound=80.0, against=100.0)
    most = replace(least, bound=125.0)  # of a throughput, more is better
    plan = replace(PLAN, frontier=(PLAN.frontier[0], least, most), pool=(*PLAN.pool, replace(PLAN.pool[0], bound=0.5)))
    write_plan(plan, tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    told = [(row["is_proven"], row["gap"]) for row in (*data["frontier"], data["pool"][-1])]
    assert told == [(True, 0.0), (False, pytest.approx(0.2)), (False, pytest.approx(0.25)), (True, 0.0)]
    assert read_plan(tmp_path / "plan.json") == plan


def test_a_plan_of_before_answers_said_so_is_read(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    for row in (*data["frontier"], *data["pool"]):
        del row["is_proven"], row["gap"]
    for row in data["frontier"]:
        del row["against"]
    for field in ("frontier_axes", "absent", "shortfalls", "notes"):
        del data[field]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert read_plan(tmp_path / "plan.json") == PLAN


def test_the_first_device_is_the_one_that_runs_measure_on() -> None:
    assert PLAN.device == "server"


@pytest.mark.parametrize("content", ["", "[]", "null", '{"schema_version": 2}', "{"])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"plan\.json"):
        read_plan(path)


def test_a_plan_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_plan(tmp_path / "plan.json")
