"""Stage: the chosen child is timed beside its parent before anything is trained, and chosen again where it is too slow.

What a search chose is what the profile flatters (`profiler.tried`), and minutes of training are lost on a child that
misses its budget. A trial takes seconds: random weights are as fast as others. Children that were tried are kept in a
copy of the profile beside the plan, by which times are foretold from then on.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blockwright.cost import Load, Quantity
from blockwright.errors import InputError
from blockwright.files import digest_of, read_json, write_json
from blockwright.hw_profiles.device import this_device
from blockwright.hw_profiles.folder import HEAD, read_profile, write_profile
from blockwright.hw_profiles.profile import Profile, check_is_this_machine
from blockwright.hw_profiles.tried import Share, TriedChild
from blockwright.pipeline.console import progress, say
from blockwright.pipeline.search import SearchOrder, name_and_place, search_plan
from blockwright.pipeline.software import engine_software, say_what_is_missing
from blockwright.pipeline.stage import Stage, running
from blockwright.pipeline.validate import write_random_engine
from blockwright.profiler.cost_model import predict
from blockwright.profiler.engines import EngineRequest, time_apart
from blockwright.search.plan import BudgetLine, Plan
from blockwright.spec import Format, with_format
from blockwright.strict import from_data, to_data

TRIED, TRIED_REFINED = "tried", "tried-refined"
"""Names of a run's trials."""
_MOST_CHILDREN = 4
"""After so many trials the last child is taken, and its report says what it misses."""
_LEAST_TO_TRIM = 6
LEAST_PROCESSES = 4
"""Fewer decide by luck."""
_SHARES: tuple[Quantity, ...] = ("time_per_token", "time_to_first_token")
_TIMED: tuple[Quantity, ...] = (*_SHARES, "request_latency", "throughput", "energy")
"""What hangs on times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryOrder:
    """How to try a child."""

    name: str
    """Of the stage; another one tries its own children."""
    parent_format: Format
    processes: int
    """In each weights lie elsewhere in memory, which moves a share by 1 to 2 % (measured on a 2-core Zen 3)."""
    seconds: float = 0.5
    """To measure each time for, in each process."""


def search_tried(
    scores: Path, profiles: Sequence[str | Path], order: SearchOrder, trial: TryOrder, output: Path
) -> Plan:
    """`search_plan`, with children tried on this machine, which must be the first profile's.

    Raises:
        InputError: it is not, or the profile tells of another runtime than the one that children are tried in.
    """
    name, first = name_and_place(profiles[0])
    if order.backend != "onnxruntime":
        raise InputError(
            "--trials",
            got=f"--backend {order.backend}",
            expected="onnxruntime, the runtime that children are tried in",
            remedy="Leave --trials out: the plan goes by the profile alone.",
        )
    check_is_this_machine(read_profile(first), this_device(), engine_software())
    say_what_is_missing()

    def choose(place: str | Path) -> Plan:
        return search_plan(scores, [f"{name}={place}" if name else place, *profiles[1:]], order, output)

    return choose_tried(choose, first, trial, output.parent)[0]


def choose_tried(
    choose: Callable[[str | Path], Plan], profile: str | Path, order: TryOrder, home: Path
) -> tuple[Plan, str | Path]:
    """Chooses, tries what was chosen, and chooses again until the child keeps its budgets of time.

    Args:
        choose: makes the plan from a profile's place.
        profile: a ready one's name or folder; it is not written to.
        order: how to try.
        home: where the last trial is kept, and the copy of the profile.

    Returns:
        The last plan, and the place of the profile that it was made from.
    """
    given, copy = read_profile(profile), home / f"profile-{order.name}"
    while True:
        known = _with_kept(given, copy)
        place = profile if known is given else copy
        plan = choose(place)
        loads = _loads_with_times(plan)
        if order.processes and not loads:
            say("tried     nothing: no budget hangs on a time")
        if not (loads and order.processes):
            return plan, place
        tried = _try_child(plan, known, loads, order, home / f"{order.name}.json")
        for line in _lines(plan, loads, tried):
            say(f"tried     {line}")
        if not (over := budgets_missed(plan, known, tried)):
            return plan, place
        num_children = (len(known.tried) - len(given.tried)) // len(loads) + 1
        if all(one in known.tried for one in tried):
            say("tried     the same child came out again, over a budget at its slowest: it is taken")
            return plan, place
        if num_children >= _MOST_CHILDREN:
            say("tried     none was within the budgets of time at its slowest: going on with the last")
            return plan, place
        say(f"tried     over {' and '.join(over)} at its slowest: searching again with what was measured")
        write_profile(replace(known, tried=(*known.tried, *tried)), copy)


def budgets_missed(plan: Plan, profile: Profile, tried: Sequence[TriedChild]) -> list[str]:
    """The budgets of time that a plan's child does not keep at the slowest of what was measured."""
    slowest = [replace(one, **{name: _at_high(share) for name, share in one.shares.items()}) for one in tried]
    told = replace(profile, tried=tuple(slowest))
    costs = {name: predict(told, plan.child, load) for name, load in _loads_with_times(plan).items()}
    return [line.text for line in _timed(plan) if not _is_within(line, costs[line.load][line.quantity].value)]


def _is_within(line: BudgetLine, value: float) -> bool:
    return value >= line.limit if line.is_least else value <= line.limit


def _at_high(share: Share) -> Share:
    return replace(share, median=share.high)


def _timed(plan: Plan) -> list[BudgetLine]:
    return [line for line in plan.budgets if line.device == plan.device and line.quantity in _TIMED]


def _loads_with_times(plan: Plan) -> dict[str, Load]:
    return {line.load: plan.loads[line.load] for line in _timed(plan)}


def _with_kept(given: Profile, place: Path) -> Profile:
    """The profile with the children that were tried before, where these are of this very profile."""
    if not (place / HEAD).exists():
        return given
    try:
        kept = read_profile(place)
    except InputError as error:
        say(f"tried     begun anew: {error.field}: {error.got}")
        return given
    is_same = digest_of(to_data(replace(kept, tried=()))) == digest_of(to_data(replace(given, tried=())))
    return kept if is_same else given


def _try_child(
    plan: Plan, known: Profile, loads: dict[str, Load], order: TryOrder, output: Path
) -> tuple[TriedChild, ...]:
    made_from = {"child": to_data(plan.child), "loads": to_data(loads), "order": to_data(order)}
    stage = Stage(name=order.name, output=output, inputs=made_from | {"profile": [known.name, known.created]})

    if (before := stage.reuse(lambda: read_tried(output))) is not None:
        return before
    with running(stage), progress(order.name, order.processes * len(loads)) as advance:
        tried = tuple(
            _try_at(plan, load, order, known, lambda: advance("beside the parent")) for load in loads.values()
        )
        write_json(output, to_data(tried))
    return tried


def read_tried(path: Path) -> tuple[TriedChild, ...]:
    """What the last trial measured, at each load.

    Raises:
        InputError: the file is missing or broken.
    """
    return from_data(tuple[TriedChild, ...], read_json(path), str(path))


def _try_at(plan: Plan, load: Load, order: TryOrder, known: Profile, on_process: Callable[[], None]) -> TriedChild:
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / name for name in ("parent", "child")]
        models = with_format(plan.parent, order.parent_format), plan.child
        for model, folder in zip(models, folders, strict=True):
            write_random_engine(model, load, known.num_threads, folder)
        request = EngineRequest(
            folders=tuple(map(str, folders)),
            load=load,
            seconds=order.seconds,
            reference_s=known.ceilings.reference_s,
        )
        found = []
        for _ in range(order.processes):
            found.append(time_apart(request))
            on_process()
    return TriedChild(
        child=plan.child,
        parent_format=str(order.parent_format),
        load=load,
        time_per_token=_share([child.time_per_token.calm_s / parent.time_per_token.calm_s for parent, child in found]),
        time_to_first_token=_share(
            [child.time_to_first_token.calm_s / parent.time_to_first_token.calm_s for parent, child in found]
        ),
    )


def _share(values: Sequence[float]) -> Share:
    """Their median, and its 93 % interval where there are eight: the second from either end. All of fewer than six."""
    ranked = sorted(values)
    inner = ranked[1:-1] if len(ranked) >= _LEAST_TO_TRIM else ranked
    return Share(median=statistics.median(ranked), low=inner[0], high=inner[-1], num_processes=len(ranked))


def _lines(plan: Plan, loads: dict[str, Load], tried: Sequence[TriedChild]) -> list[str]:
    """What was measured beside what was foretold, for people."""
    foretold = {
        (promise.load, promise.quantity): promise.child.value / promise.parent.value
        for promise in plan.promises
        if promise.device == plan.device and promise.quantity in _SHARES
    }
    lines: list[str] = []
    for (name, _), one in zip(loads.items(), tried, strict=True):
        for quantity in _SHARES:
            share = one.shares[quantity]
            lines.append(
                f"{quantity}@{name} {100 * share.median:.1f} % of the parent's ({100 * share.low:.1f} to "
                f"{100 * share.high:.1f}), {100 * foretold[name, quantity]:.1f} foretold"
            )
    return lines
