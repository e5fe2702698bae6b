"""Stage: measure this machine by itself, whatever model it is to run: ceilings, power, and a grid of operators."""

from dataclasses import dataclass, replace
from pathlib import Path

from blockwright.compile.engine import SessionSettings
from blockwright.hw_profiles.conditions import conditions_now
from blockwright.hw_profiles.device import cache_bytes, this_device
from blockwright.hw_profiles.profile import SCHEMA_VERSION, OperatorRow, Profile
from blockwright.hw_profiles.provenance import Method
from blockwright.pipeline.marks import write_marked
from blockwright.pipeline.measuring import Limits, measure_all
from blockwright.pipeline.power import with_power
from blockwright.pipeline.profile import (
    at_best,
    ceilings_in,
    coverage_of,
    now,
    read_profile_of,
    reference_for,
    started_at,
)
from blockwright.pipeline.software import engine_software
from blockwright.pipeline.stage import Stage, running
from blockwright.profiler.clock import OUTLIER_RULE, WARM_UP, Effort, clock_for
from blockwright.profiler.operator_grid import grid_cases
from blockwright.strict import to_data

_SHARE = 0.2
"""An operator of the grid gets so much of the seconds that a part of a model gets: there are several times as many."""
_LIMIT_S = 220.0
"""Of the grid, so that with the ceilings it is five minutes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOrder:
    """How to measure."""

    threads: int
    seconds_per_measurement: float
    """Of a ceiling."""


def default_folder() -> Path:
    """Where a profile of this machine goes."""
    return Path("hw_profiles") / this_device().name


def profile_device(order: DeviceOrder, output: Path) -> Profile:
    """Measures this machine, or reads what was measured before with the same order, machine and software."""
    device, software = this_device(), engine_software()
    inputs = {"order": to_data(order), "device": device.digest, "software": software}
    stage = Stage(name="profile-device", output=output, inputs=inputs)
    if (before := stage.reuse(lambda: read_profile_of(output, device))) is not None:
        return before
    session = SessionSettings(num_threads=order.threads)
    with running(stage) as work:
        started, conditions = started_at(work / "started.json"), conditions_now()
        reference = reference_for(work / "ceilings.json")
        effort = Effort(seconds=order.seconds_per_measurement, judge=reference)
        ceilings = ceilings_in(work / "ceilings.json", session, effort, reference)
        brief = replace(effort, seconds=_SHARE * effort.seconds, min_turns=6, max_turns=30, num_warm_up=2)
        todo = grid_cases(session, brief, cache_bytes())
        measured = measure_all(todo, work, Limits(target=1.0, again_s=0.0, total_s=_LIMIT_S, first_s=_LIMIT_S))
        best_s = min(reference.least_s, measured.reference_s or reference.least_s)
        profile = Profile(
            schema_version=SCHEMA_VERSION,
            name=device.name,
            device=device,
            conditions=conditions,
            software=software,
            num_threads=order.threads,
            created=now(),
            model=None,
            ceilings=with_power(at_best(ceilings, best_s), todo[0].prepared()),
            method=Method(
                clock=clock_for(order.threads), warm_up=WARM_UP, outlier_rule=OUTLIER_RULE, seconds=brief.seconds
            ),
            coverage=coverage_of(len(todo), measured, started),
            operators=tuple(row for row in measured.rows(todo, best_s) if isinstance(row, OperatorRow)),
        )
        profile = write_marked(profile, output)
    return profile
