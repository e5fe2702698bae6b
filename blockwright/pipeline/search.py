"""Stage: choose the blocks. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.files import digest_of, digest_of_files
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.profile import Backend, Profile, is_imported
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.stage import Stage, check_is_no_folder, running, whole
from blockwright.profiler.agree import odd_rows
from blockwright.profiler.check import check_utilisation
from blockwright.profiler.imported_costs import imported_phases
from blockwright.search.budget import parse_budget
from blockwright.search.build import NO_RULES, Order, Rules, build_problem
from blockwright.search.choose import Steps, checked, choose
from blockwright.search.explain import fits
from blockwright.search.offered import in_formats
from blockwright.search.plan import Axis, Plan, read_plan, write_plan
from blockwright.search.rivals import NUM_WAYS
from blockwright.search.scores import Score, ScoreTable, read_scores
from blockwright.search.sweep import Sweep, default_sweep, read_axis
from blockwright.spec import Candidate, Format, Model, parse_format
from blockwright.statistics import Estimate
from blockwright.strict import to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOrder:
    """What to choose for."""

    loads: dict[str, tuple[Load, ...]]
    """Each with one batch, or several to choose from."""
    budgets: tuple[str, ...]
    formats: tuple[str, ...]
    """That each layer may be stored in."""
    backend: Backend
    time_limit_s: float
    frontier_points: int
    metric: str = "kl"
    rules: Rules = NO_RULES
    may_extrapolate: bool = False
    tolerance: float = 0.0
    pool_size: int = 1
    min_layers_differ: int = 1
    compares: bool = False
    """Whether simpler ways to choose stand beside the plan."""
    along: str = ""
    """What the frontier goes along: a quantity at a load, or a budget's text; empty for the first from above."""
    against: str = "score"
    """What is best at each limit: the score, or as `along`."""
    most_score: float | None = None
    """The most that scores may sum to in a frontier against a cost."""


def search_plan(scores: Path, profiles: Sequence[str | Path], order: SearchOrder, output: Path) -> Plan:
    """Chooses the child, or reads the plan that was made before from the same inputs.

    Args:
        scores: the table.
        profiles: a profile's folder or name for each device, or NAME=FOLDER; the first is the one that runs measure on.
        order: what to choose for.
        output: the plan.
    """
    check_is_no_folder(output)
    devices = read_devices(profiles)
    inputs = {
        "order": to_data(order),
        "scores": digest_of_files([scores]) if scores.exists() else None,
        "profiles": [[name, digest_of(to_data(profile))] for name, profile in devices.items()],
    }
    stage = Stage(name="search", output=output, inputs=inputs, reads=(scores, *profile_files(profiles)))
    if (before := stage.reuse(lambda: read_plan(output))) is not None:
        return before
    table = read_scores(scores)
    check_pool(order, table.parent)
    asked = full_order(order, devices)
    sweep = _sweep(order, asked)
    num_steps = order.frontier_points + order.pool_size + NUM_WAYS * order.compares
    with running(stage), progress("search", num_steps) as advance:
        steps = Steps(
            on_point=lambda: advance("frontier"),
            on_found=lambda: advance("pool"),
            on_rival=lambda: advance("simpler ways to choose"),
        )
        plan = choose(table, asked, steps, sweep)
        write_plan(plan, output)
    return plan


def read_devices(profiles: Sequence[str | Path]) -> dict[str, Profile]:
    """Profiles by the names of their devices.

    Raises:
        InputError: one of them is none, or two devices have one name.
    """
    devices: dict[str, Profile] = {}
    for text in profiles:
        name, file = name_and_place(text)
        profile = read_profile(file)
        check_utilisation(profile)
        odd = [str(each) for each in odd_rows(profile)]
        for line in odd:
            say(f"note      profile {profile.name}: {line}")
        if marked := set(profile.coverage.marked) - set(odd):
            say(f"note      profile {profile.name}: {len(marked)} marks on rows: see blockwright profile show {file}")
        name = name or profile.name
        if name in devices:
            raise InputError(
                "--profile",
                got=f"two devices of the name {name}",
                expected="a name of its own for each",
                remedy="Name one of them: --profile NAME=FOLDER.",
            )
        devices[name] = profile
    return devices


def name_and_place(text: str | Path) -> tuple[str, str | Path]:
    """What NAME=PROFILE names; the name is empty where the text is a profile's place alone."""
    if Path(text).exists():
        return "", text
    name, _, place = str(text).rpartition("=")
    return name, place


def profile_files(profiles: Sequence[str | Path]) -> list[Path]:
    """The folders of profiles and the files in them; a profile that ships has none to lose."""
    named = [Path(text) if Path(text).exists() else Path(str(text).rpartition("=")[2]) for text in profiles]
    return [file for path in named if path.exists() for file in whole(path)]


def check_reachable(
    parent: Model,
    offered: Sequence[Candidate],
    devices: Mapping[str, Profile],
    order: SearchOrder,
    formats: tuple[tuple[Format, ...], ...] = (),
) -> None:
    """Finds out whether any child is within the budgets, before its library is trained.

    Args:
        parent: the parent.
        offered: the candidates that there will be.
        devices: profiles by the names of their devices.
        order: what to choose for.
        formats: that each layer may be stored in; see `search/offered.py`.

    Raises:
        InputError: none is; the error says which budgets clash, what can be reached and what would fit.
    """
    check_pool(order, parent)
    nothing = Estimate(value=0.0, low=0.0, high=0.0, num_values=1)
    asked = full_order(order, devices)
    scores = tuple(
        Score(candidate=candidate, metric=order.metric, estimate=nothing)
        for candidate in in_formats(offered, asked.formats, formats)
    )
    table = ScoreTable(parent=parent, scores=scores, formats=formats)
    problem = build_problem(table, asked)
    checked(fits(problem, order.time_limit_s), problem, asked, table)


def check_budgets(loads: Mapping[str, Load], budgets: Sequence[str]) -> None:
    """Reads budgets and drops them, so that a mistake is found before hours of work and not after.

    Raises:
        InputError: one of them is no budget.
    """
    for text in budgets:
        parse_budget(text, loads)


def check_pool(order: SearchOrder, parent: Model) -> None:
    """Refuses a pool whose plans cannot differ as asked.

    Raises:
        InputError: they would have to differ in more layers than there are.
    """
    if order.pool_size > 1 and not 1 <= order.min_layers_differ <= len(parent.layers):
        raise InputError(
            "--differ",
            got=order.min_layers_differ,
            expected=f"from 1 to the {len(parent.layers)} layers of the parent",
            remedy="Correct the value.",
        )


def _sweep(order: SearchOrder, asked: Order) -> Sweep | None:
    """What the frontier was asked to lie between; None where nothing was said.

    Raises:
        InputError: an axis is none, or both are the same; or the score is bounded where it is an axis.
    """
    if not order.along and order.against == "score" and order.most_score is None:
        return None
    firsts = {name: loads[0] for name, loads in order.loads.items()}

    def read(text: str, flag: str) -> Axis:
        return read_axis(text, asked.budgets, firsts, list(asked.devices), flag)

    first = default_sweep(asked)
    if not order.along and first is None:
        raise InputError(
            "--along",
            got="nothing, and no budget from above",
            expected="what the frontier goes along",
            remedy="Write it, such as --along memory@chat.",
        )
    along = read(order.along, "--along") if order.along or first is None else first.along
    against = None if order.against == "score" else read(order.against, "--against")
    if along == against:
        raise InputError(
            "--against",
            got=f"{order.against}, as --along",
            expected="another quantity, or score",
            remedy="Name two that differ.",
        )
    if order.most_score is not None and against is None:
        raise InputError(
            "--most-score",
            got=f"{order.most_score} for a frontier against the score",
            expected="a frontier against a cost, beside which the score is bounded",
            remedy="Write --against QUANTITY@LOAD, or leave the bound out.",
        )
    return Sweep(along=along, against=against, most_score=order.most_score)


def full_order(order: SearchOrder, devices: Mapping[str, Profile]) -> Order:
    """The order with its texts read.

    Raises:
        InputError: a budget or a format is none, or a device has no times of the backend.
    """
    _check_backend(order.backend, devices)
    firsts = {name: loads[0] for name, loads in order.loads.items()}
    return Order(
        devices=devices,
        backend=order.backend,
        formats=tuple(parse_format(text) for text in order.formats),
        loads=order.loads,
        budgets=[parse_budget(text, firsts, list(devices)) for text in order.budgets],
        metric=order.metric,
        rules=order.rules,
        may_extrapolate=order.may_extrapolate,
        time_limit_s=order.time_limit_s,
        tolerance=order.tolerance,
        frontier_points=order.frontier_points,
        pool_size=order.pool_size,
        min_layers_differ=order.min_layers_differ,
        compares=order.compares,
    )


def _check_backend(backend: Backend, devices: Mapping[str, Profile]) -> None:
    """Refuses devices that a plan could promise no times of, before anything is said of its budgets.

    Raises:
        InputError: a profile has no times of a backend that only its own benchmarks tell of, or TensorRT does not run
            on its device.
    """
    for profile in devices.values():
        if not is_imported(profile, backend):
            continue
        if backend == "tensorrt" and profile.device.compute_capability is None:
            raise InputError(
                "--backend tensorrt",
                got=f"the profile {profile.name}, of {profile.device.vendor} {profile.device.model}",
                expected="a profile of an NVIDIA GPU, which TensorRT runs on",
                remedy="Name one, such as jetson_agx_orin, or leave out --backend tensorrt.",
            )
        imported_phases(profile, backend)
