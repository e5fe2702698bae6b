"""Stage: measure this machine for the blocks of a parent."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from blockwright.compile.engine import SessionSettings
from blockwright.cost import Load
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.conditions import conditions_now
from blockwright.hw_profiles.device import installed_software, this_device
from blockwright.hw_profiles.folder import read_profile, write_profile
from blockwright.hw_profiles.profile import SCHEMA_VERSION, Backend, MemoryRow, Profile, TimeRow, WholeRow
from blockwright.hw_profiles.provenance import Coverage, Method
from blockwright.pipeline.console import progress
from blockwright.pipeline.kit import offered
from blockwright.pipeline.stage import Stage, running
from blockwright.profiler.ceilings import measure_ceilings
from blockwright.profiler.clock import OUTLIER_RULE, WARM_UP, Effort, clock_for
from blockwright.profiler.measure import Request, Row, cases
from blockwright.profiler.reference import Reference, make_reference
from blockwright.search.space import SpaceSettings
from blockwright.spec import Model, parse_format
from blockwright.strict import from_data, to_data

_PATIENCE_PER_EFFORT = 2.0
"""How long to wait for a calm machine, in the seconds that the measurements are meant to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOrder:
    """What to measure."""

    parent: Model
    space: SpaceSettings
    loads: dict[str, Load]
    formats: tuple[str, ...]
    threads: int
    backends: tuple[Backend, ...]
    seconds_per_measurement: float


def profile_machine(order: ProfileOrder, output: Path) -> Profile:
    """Measures this machine, or reads what was measured before with the same order, machine and software."""
    device, software = this_device(), installed_software()
    stage = Stage(
        name="profile",
        output=output,
        inputs={"order": to_data(order), "device": device.digest, "software": software},
    )
    if (before := stage.reuse(lambda: read_profile(output))) is not None:
        return before
    session = SessionSettings(num_threads=order.threads)
    with running(stage) as work:
        _started(work / "started.json")
        rows: list[Row] = []
        conditions = conditions_now()
        done = {path.stem: path for path in work.glob("step-*.json")}
        reference = _reference(work / "ceilings.json")
        effort = Effort(seconds=order.seconds_per_measurement, judge=reference)
        todo = list(cases(_request(order, session, effort)))
        reference.patience_s = _PATIENCE_PER_EFFORT * effort.seconds * len(todo)
        with progress("profile", len(todo) + 1) as advance:
            ceilings = _ceilings(work / "ceilings.json", session, effort, reference)
            advance()
            for index, step in enumerate(todo):
                name = f"step-{index:04d}"
                if name in done:
                    rows += [_read_row(data) for data in read_json(done[name])]
                else:
                    measured = step.measure()
                    write_json(work / f"{name}.json", [[type(row).__name__, to_data(row)] for row in measured])
                    rows += measured
                advance(step.name)
        profile = Profile(
            schema_version=SCHEMA_VERSION,
            name=device.name,
            device=device,
            conditions=conditions,
            software=software,
            num_threads=order.threads,
            created=_now(),
            model=order.parent,
            ceilings=replace(ceilings, reference_s=reference.least_s),
            method=Method(
                clock=clock_for(order.threads),
                warm_up=WARM_UP,
                outlier_rule=OUTLIER_RULE,
                seconds=order.seconds_per_measurement,
            ),
            coverage=_all_of(len(todo), _started(work / "started.json")),
            times=tuple(row for row in rows if isinstance(row, TimeRow)),
            wholes=tuple(row for row in rows if isinstance(row, WholeRow)),
            memory=tuple(row for row in rows if isinstance(row, MemoryRow)),
        )
        write_profile(profile, output)
    return profile


def _request(order: ProfileOrder, session: SessionSettings, effort: Effort) -> Request:
    mixers, ffns = offered(order.parent, order.space)
    return Request(
        parent=order.parent,
        mixers=mixers,
        ffns=ffns,
        formats=tuple(parse_format(text) for text in order.formats),
        loads=tuple(order.loads.values()),
        session=session,
        effort=effort,
        backends=order.backends,
    )


def _reference(path: Path) -> Reference:
    """The reference kernel, with what it took at its best before a kill."""
    return make_reference(0.0, _read_ceilings(path).reference_s if path.exists() else None)


def _started(path: Path) -> str:
    """When this was begun, which may be before a kill."""
    if not path.exists():
        write_json(path, _now())
    return from_data(str, read_json(path), str(path))


def _all_of(num_steps: int, started: str) -> Coverage:
    ended = _now()
    return Coverage(
        status="complete",
        asked=num_steps,
        done=num_steps,
        failed=0,
        started=started,
        ended=ended,
        wall_s=(datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ceilings(path: Path, session: SessionSettings, effort: Effort, reference: Reference) -> Ceilings:
    if not path.exists():
        write_json(path, to_data(measure_ceilings(session, effort, reference)))
    return _read_ceilings(path)


def _read_ceilings(path: Path) -> Ceilings:
    return from_data(Ceilings, read_json(path), str(path))


def _read_row(data: list) -> Row:
    name, fields = data
    return from_data({"TimeRow": TimeRow, "WholeRow": WholeRow, "MemoryRow": MemoryRow}[name], fields, name)
