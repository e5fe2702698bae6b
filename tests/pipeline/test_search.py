"""The search as a stage: read once, made anew when anything changed, and asked before there are scores."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.folder import write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline.search import SearchOrder, check_reachable, read_devices, search_plan
from blockwright.search.build import Rules
from blockwright.search.choose import InfeasibleError
from blockwright.search.plan import read_plan
from blockwright.search.scores import ScoreTable, write_scores
from blockwright.spec import FP32, Candidate, Format, Model

LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
ORDER = SearchOrder(
    loads={"chat": (LOAD,)},
    budgets=("parameters@chat <= 60%",),
    formats=("fp32",),
    backend="onnxruntime",
    time_limit_s=20.0,
    frontier_points=2,
)


@pytest.fixture
def profile(make_profile: Callable[..., Profile]) -> Profile:
    return make_profile([LOAD], formats=[FP32, Format(name="int4", group_size=32)])


@pytest.fixture
def files(tmp_path: Path, profile: Profile, make_table: Callable[..., ScoreTable]) -> Path:
    """A folder with scores and the profiles of two devices."""
    write_scores(make_table(), tmp_path / "scores.parquet")
    write_profile(profile, tmp_path / "one")
    write_profile(replace(profile, name="other"), tmp_path / "two")
    return tmp_path


def test_a_plan_is_made_once_for_the_same_inputs(files: Path) -> None:
    def made(order: SearchOrder = ORDER, profiles: tuple[str, ...] = ("one",)) -> int:
        search_plan(files / "scores.parquet", [files / name for name in profiles], order, files / "plan.json")
        return (files / "plan.json").stat().st_mtime_ns

    before = made()
    assert made() == before
    other_rules = replace(ORDER, rules=Rules(forbidden=("layer-01-ffn-none",)))
    for changed in (other_rules, replace(ORDER, pool_size=2), replace(ORDER, formats=("int4",)), ORDER):
        after = made(changed)
        assert after != before
        before = after
    assert made(profiles=("two",)) != before


def test_which_device_is_the_first_makes_another_plan(files: Path) -> None:
    for names in (("one", "two"), ("two", "one")):
        profiles = [f"{name}={files / name}" for name in names]
        plan = search_plan(files / "scores.parquet", profiles, ORDER, files / "plan.json")
        assert tuple(plan.devices) == names
        assert plan.device == read_plan(files / "plan.json").device == names[0]


def test_a_device_has_the_name_it_is_given_or_its_profiles(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    shutil.copytree(files / "one", files / "a=b")
    assert list(read_devices(["phone=one", "two", "a=b"])) == ["phone", "other", "made-up"]
    with pytest.raises(InputError, match="two devices of the name made-up"):
        read_devices(["one", "a=b"])


@pytest.mark.parametrize(
    "rules",
    [Rules(), Rules(most_shapes=2), Rules(removes_contiguously=True, most_shapes=1), Rules(servable_by=("vllm",))],
)
@pytest.mark.parametrize("formats", [("fp32",), ("fp32", "int4")])
def test_what_can_be_reached_is_known_before_there_are_scores(
    rules: Rules, formats: tuple[str, ...], profile: Profile, made_up_parent: Model, made_up_offered: list[Candidate]
) -> None:
    order = replace(ORDER, rules=rules, formats=formats)
    for budget in ("parameters@chat <= 60%", "time_per_token@chat <= 50%"):
        check_reachable(made_up_parent, made_up_offered, {"d": profile}, replace(order, budgets=(budget,)))
    shut = replace(order, budgets=("parameters@chat <= 60%", "memory@chat <= 1kB"))
    with pytest.raises(InfeasibleError) as caught:
        check_reachable(made_up_parent, made_up_offered, {"d": profile}, shut)
    assert caught.value.clash.clashing == ("memory@chat <= 1kB",)


def test_a_pool_that_cannot_differ_so_much_is_refused_before_any_work(
    profile: Profile, made_up_parent: Model, made_up_offered: list[Candidate]
) -> None:
    order = replace(ORDER, pool_size=2, min_layers_differ=4)
    with pytest.raises(InputError, match="--differ: got 4; expected from 1 to the 3 layers"):
        check_reachable(made_up_parent, made_up_offered, {"d": profile}, order)
