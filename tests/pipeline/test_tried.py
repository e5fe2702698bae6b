"""The chosen child is timed beside its parent, and chosen again where it is too slow."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cli.main import main
from blockwright.compile.engine import read_engine
from blockwright.cost import Load
from blockwright.hw_profiles.folder import read_profile, write_profile
from blockwright.hw_profiles.profile import Profile
from blockwright.pipeline import tried
from blockwright.pipeline.search import SearchOrder, search_plan
from blockwright.pipeline.tried import TryOrder, choose_tried, search_tried
from blockwright.profiler.clock import Timing
from blockwright.profiler.cost_model import predict
from blockwright.profiler.engines import EngineRequest, EngineTimes
from blockwright.search.plan import Plan, read_plan
from blockwright.search.scores import ScoreTable, write_scores
from blockwright.spec import FP32, LinearMixer, Model

LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
ORDER = TryOrder(name="tried", parent_format=FP32, processes=8, seconds=0.01)


@pytest.fixture
def home(tmp_path: Path, make_profile: Callable[..., Profile], make_table: Callable[..., ScoreTable]) -> Path:
    """A folder with a profile and scores."""
    write_profile(make_profile([LOAD]), tmp_path / "profile")
    write_scores(make_table(), tmp_path / "scores.parquet")
    return tmp_path


def _search(home: Path, budgets: tuple[str, ...]) -> Callable[[str | Path], Plan]:
    return lambda place: search_plan(home / "scores.parquet", [place], _order(budgets), home / "plan.json")


def _order(budgets: tuple[str, ...]) -> SearchOrder:
    return SearchOrder(
        loads={"chat": (LOAD,)},
        budgets=budgets,
        formats=("fp32",),
        backend="onnxruntime",
        time_limit_s=10.0,
        frontier_points=0,
    )


class _Machine:
    """A machine whose linear mixers take longer than the profile says; it counts the processes."""

    def __init__(self, profile: Profile, linear_s: float, wobble: float = 0.0) -> None:
        self._profile, self._linear_s, self._wobble = profile, linear_s, wobble
        self.num_processes = 0

    def share(self, model: Model) -> float:
        return self._time(model) / self._time(self._profile.model)

    def time_apart(self, request: EngineRequest) -> tuple[EngineTimes, ...]:
        self.num_processes += 1
        times = [self._time(read_engine(Path(folder)).model) for folder in request.folders]
        times[-1] *= 1 + self._wobble * (self.num_processes % 2)
        return tuple(EngineTimes(time_per_token=_timing(t), time_to_first_token=_timing(30 * t)) for t in times)

    def _time(self, model: Model | None) -> float:
        assert model is not None
        num_linear = sum(isinstance(block.mixer, LinearMixer) for block in model.layers)
        return predict(self._profile, model, LOAD)["time_per_token"].value + num_linear * self._linear_s


def _timing(time_s: float) -> Timing:
    return Timing(
        calm_s=time_s, low_s=time_s, high_s=time_s, typical_s=time_s, num_samples=9, num_rejected=0, clock="thread_cpu"
    )


@pytest.fixture
def make_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Machine]:
    def make(**how: float) -> _Machine:
        machine = _Machine(read_profile(home / "profile"), **how)
        monkeypatch.setattr(tried, "time_apart", machine.time_apart)
        return machine

    return make


def test_a_child_that_is_too_slow_is_replaced_by_one_that_keeps_the_budget(
    home: Path, make_machine: Callable[..., _Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    choose, machine = _search(home, ("time_per_token@chat <= 60%",)), make_machine(linear_s=12e-6)
    flattered = choose(home / "profile")
    assert machine.share(flattered.child) > 0.6
    plan, place = choose_tried(choose, home / "profile", ORDER, home)
    assert machine.share(plan.child) <= 0.6
    assert place == home / "profile-tried"
    assert read_profile(place).tried[0].child == flattered.child
    assert plan.score > flattered.score
    assert "over time_per_token@chat <= 60% at its slowest: searching again" in capsys.readouterr().err


def test_what_was_tried_is_not_tried_again(home: Path, make_machine: Callable[..., _Machine]) -> None:
    choose, machine = _search(home, ("time_per_token@chat <= 60%",)), make_machine(linear_s=12e-6)
    before = choose_tried(choose, home / "profile", ORDER, home)
    spent, stamp = machine.num_processes, (home / "plan.json").stat().st_mtime_ns
    assert spent % ORDER.processes == 0 and spent >= 2 * ORDER.processes
    assert choose_tried(choose, home / "profile", ORDER, home) == before
    assert machine.num_processes == spent
    assert (home / "plan.json").stat().st_mtime_ns == stamp, "a finished search ran again"


def test_a_kill_between_a_trial_and_the_next_search_loses_nothing(
    home: Path, make_machine: Callable[..., _Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, machine = _search(home, ("time_per_token@chat <= 60%",)), make_machine(linear_s=12e-6)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(tried, "write_profile", killed)
        with pytest.raises(KeyboardInterrupt):
            choose_tried(choose, home / "profile", ORDER, home)
    assert machine.num_processes == ORDER.processes
    plan, _ = choose_tried(choose, home / "profile", ORDER, home)
    assert machine.share(plan.child) <= 0.6
    assert machine.num_processes == 2 * ORDER.processes


def test_a_child_that_keeps_its_budgets_is_tried_once_and_the_profile_left_alone(
    home: Path, make_machine: Callable[..., _Machine]
) -> None:
    choose, machine = _search(home, ("time_per_token@chat <= 60%",)), make_machine(linear_s=0.0)
    plan, place = choose_tried(choose, home / "profile", ORDER, home)
    assert (plan, place) == (choose(home / "profile"), home / "profile")
    assert machine.num_processes == ORDER.processes
    assert not (home / "profile-tried").exists()
    assert json.loads((home / "tried.json").read_text())[0]["time_per_token"]["num_processes"] == 8


def test_the_slow_end_counts(home: Path, make_machine: Callable[..., _Machine]) -> None:
    """Half of the processes are calm: the median alone would let the child pass."""
    choose, machine = _search(home, ("time_per_token@chat <= 60%",)), make_machine(linear_s=0.0, wobble=0.1)
    first = choose(home / "profile")
    assert machine.share(first.child) < 0.6 < 1.1 * machine.share(first.child)
    choose_tried(choose, home / "profile", ORDER, home)
    assert machine.num_processes > ORDER.processes


@pytest.mark.parametrize("budgets", [("parameters@chat <= 60%",), ("memory@chat <= 90%", "disk@chat <= 80%")])
def test_budgets_that_no_time_is_in_need_no_trial(
    home: Path, make_machine: Callable[..., _Machine], budgets: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = make_machine(linear_s=0.0)
    choose_tried(_search(home, budgets), home / "profile", ORDER, home)
    assert machine.num_processes == 0
    assert "tried     nothing: no budget hangs on a time" in capsys.readouterr().err


def test_no_processes_mean_no_trial(home: Path, make_machine: Callable[..., _Machine]) -> None:
    machine, choose = make_machine(linear_s=12e-6), _search(home, ("time_per_token@chat <= 60%",))
    plan, _ = choose_tried(choose, home / "profile", replace(ORDER, processes=0), home)
    assert machine.share(plan.child) > 0.6
    assert machine.num_processes == 0


@pytest.mark.parametrize("budget", ["throughput@chat >= 160%", "request_latency@chat <= 62%"])
def test_budgets_of_what_follows_from_times_are_tried_too(
    home: Path, make_machine: Callable[..., _Machine], budget: str
) -> None:
    choose, machine = _search(home, (budget,)), make_machine(linear_s=12e-6)
    plan, place = choose_tried(choose, home / "profile", ORDER, home)
    assert place == home / "profile-tried"
    assert machine.share(plan.child) <= 1 / 1.6


def test_a_child_that_comes_out_again_is_taken(
    home: Path, make_machine: Callable[..., _Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    """By its median it keeps the budget, so that the search knows no better; its slow end does not."""
    machine = make_machine(linear_s=0.0, wobble=0.4)
    choose_tried(_search(home, ("time_per_token@chat <= 60%",)), home / "profile", ORDER, home)
    assert machine.num_processes <= 4 * ORDER.processes
    said = capsys.readouterr().err
    assert "the same child came out again" in said and "none was within" not in said


def test_after_four_children_the_last_is_taken(
    home: Path, make_machine: Callable[..., _Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = make_machine(linear_s=0.0, wobble=0.4)
    plans = [_search(home, (f"time_per_token@chat <= {share}%",))(home / "profile") for share in (60, 55, 50, 45, 40)]
    assert len({plan.child for plan in plans}) == len(plans)
    left = iter(plans)
    assert choose_tried(lambda _: next(left), home / "profile", ORDER, home) == (plans[3], home / "profile-tried")
    assert machine.num_processes == 4 * ORDER.processes
    assert "none was within the budgets of time" in capsys.readouterr().err


def test_the_search_by_itself_tries_too_and_keeps_the_names_of_devices(
    home: Path,
    make_machine: Callable[..., _Machine],
    make_profile: Callable[..., Profile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, given = make_machine(linear_s=12e-6), read_profile(home / "profile")
    monkeypatch.setattr(tried, "this_device", lambda: given.device)
    monkeypatch.setattr(tried, "engine_software", lambda: given.software)
    write_profile(make_profile([LOAD], slowness=3.0, name="slow"), home / "slow")
    order = replace(_order(("time_per_token@here:chat <= 60%",)), pool_size=2)
    profiles = [f"here={home / 'profile'}", home / "slow"]
    plan = search_tried(home / "scores.parquet", profiles, order, ORDER, home / "plan.json")
    assert machine.share(plan.child) <= 0.6
    assert list(plan.devices) == ["here", "slow"]
    assert read_plan(home / "plan.json") == plan


@pytest.mark.parametrize(("flags", "got"), [(["--backend", "torch"], "--backend torch"), ([], "made up")])
def test_children_are_tried_where_the_profile_is_of_and_in_our_runtime(
    home: Path, flags: list[str], got: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", "--scores", str(home / "scores.parquet"), "--profile", str(home / "profile"), "--trials", "8"]
    command += ["--budget", "time_per_token@chat <= 60%", "--load", "chat=1x40+24", "--out", str(home / "plan.json")]
    assert main([*command, *flags]) == 2
    assert got in capsys.readouterr().err
    assert not (home / "plan.json").exists()


def test_another_profile_forgets_what_was_tried(home: Path, make_machine: Callable[..., _Machine]) -> None:
    choose = _search(home, ("time_per_token@chat <= 60%",))
    make_machine(linear_s=12e-6)
    choose_tried(choose, home / "profile", ORDER, home)
    write_profile(replace(read_profile(home / "profile"), created="2026-01-01T00:00:00+00:00"), home / "profile")
    make_machine(linear_s=0.0)
    assert choose_tried(choose, home / "profile", ORDER, home)[1] == home / "profile"


def test_a_real_child_is_timed_beside_its_real_parent(home: Path) -> None:
    order = replace(ORDER, processes=1)
    choose_tried(_search(home, ("time_per_token@chat <= 95%",)), home / "profile", order, home)
    (one,) = json.loads((home / "tried.json").read_text())
    for share in (one["time_per_token"], one["time_to_first_token"]):
        assert 0.05 < share["median"] < 3
