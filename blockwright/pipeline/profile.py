"""Stage: measure this machine for the blocks of a parent."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from blockwright.compile.cpu_library import operators_in_use
from blockwright.compile.engine import SessionSettings
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.conditions import conditions_now
from blockwright.hw_profiles.device import Device, this_device
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.profile import SCHEMA_VERSION, Backend, MemoryRow, Profile, TimeRow, WholeRow
from blockwright.hw_profiles.provenance import Coverage, Method
from blockwright.pipeline.kit import offered
from blockwright.pipeline.marks import write_marked
from blockwright.pipeline.measuring import Limits, Measurements, measure_all, num_runs
from blockwright.pipeline.power import with_power
from blockwright.pipeline.software import engine_software
from blockwright.pipeline.stage import Stage, running
from blockwright.profiler.bench import Bench
from blockwright.profiler.ceilings import measure_ceilings
from blockwright.profiler.clock import OUTLIER_RULE, WARM_UP, Effort, clock_for
from blockwright.profiler.measure import Request, cases
from blockwright.profiler.onnx_blocks import model_run
from blockwright.profiler.points import decode_points
from blockwright.profiler.reference import Reference, make_reference
from blockwright.search.space import SpaceSettings
from blockwright.spec import Model, parse_format, with_format
from blockwright.strict import from_data, to_data

_MOST_EFFORT = 4.0
"""How long to go on measuring what is known worst, in the seconds that the first round is meant to take."""


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
    """Of the first round."""
    precision: float = 0.01
    """How well a typical child's time is to be known, as a share of it."""
    time_limit_s: float = 600.0
    """After which nothing is measured a second time."""


def profile_machine(order: ProfileOrder, output: Path) -> Profile:
    """Measures this machine, or reads what was measured before with the same order, machine and software."""
    device, software = this_device(), engine_software()
    stage = Stage(
        name="profile",
        output=output,
        inputs={"order": to_data(order), "device": device.digest, "software": software},
    )
    if (before := stage.reuse(lambda: read_profile_of(output, device, order.parent))) is not None:
        return before
    session = SessionSettings(num_threads=order.threads)
    with running(stage) as work:
        started_at(work / "started.json")
        conditions = conditions_now()
        reference = reference_for(work / "ceilings.json")
        effort = Effort(seconds=order.seconds_per_measurement, judge=reference)
        todo = list(cases(_request(order, session, effort)))
        meant_s = effort.seconds * sum(num_runs(case) for case in todo)
        ceilings = ceilings_in(work / "ceilings.json", session, effort, reference)
        limits = Limits(target=order.precision, again_s=_MOST_EFFORT * meant_s, total_s=order.time_limit_s)
        measured = measure_all(todo, work, limits)
        best_s = min(reference.least_s, measured.reference_s or reference.least_s)
        rows = measured.rows(todo, best_s)
        ceilings = with_power(at_best(ceilings, best_s), _busy(order, session, effort))
        profile = Profile(
            schema_version=SCHEMA_VERSION,
            name=device.name,
            device=device,
            conditions=conditions,
            software=software,
            num_threads=order.threads,
            created=now(),
            model=order.parent,
            ceilings=ceilings,
            method=Method(
                clock=clock_for(order.threads),
                warm_up=WARM_UP,
                outlier_rule=OUTLIER_RULE,
                seconds=order.seconds_per_measurement,
            ),
            coverage=coverage_of(len(todo), measured, started_at(work / "started.json")),
            times=tuple(row for row in rows if isinstance(row, TimeRow)),
            wholes=tuple(row for row in rows if isinstance(row, WholeRow)),
            memory=tuple(row for row in rows if isinstance(row, MemoryRow)),
        )
        profile = write_marked(profile, output)
    return profile


def read_profile_of(folder: Path, device: Device, parent: Model | None = None) -> Profile:
    """A profile that was measured, and not one that was since taken in to the same place.

    Args:
        folder: the profile's.
        device: whose it must be.
        parent: that it must be about; None for any.

    Raises:
        InputError: there is none, or it is another device's or about another parent.
    """
    profile = read_profile(folder)
    if profile.device.digest != device.digest or parent not in (None, profile.model):
        got = f"that of {profile.name}" if profile.device.digest != device.digest else "about another parent"
        raise InputError(
            str(folder),
            got=got,
            expected=f"{device.name}'s, about what was asked",
            remedy="Measure this machine again.",
        )
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
        operators=operators_in_use(),
    )


def reference_for(path: Path) -> Reference:
    """The reference kernel, with what it took at its best before a kill."""
    return make_reference(_read_ceilings(path).reference_s if path.exists() else None)


def started_at(path: Path) -> str:
    """When this was begun, which may be before a kill."""
    if not path.exists():
        write_json(path, now())
    return from_data(str, read_json(path), str(path))


def coverage_of(num_cases: int, measured: Measurements, started: str) -> Coverage:
    """How much of what was asked for was measured, and why no more."""
    ended = now()
    failures = tuple(f"{name}: {why}" for name, why in measured.failures.items())
    return Coverage(
        status="complete" if (done := len(measured.rounds) + len(measured.memory)) == num_cases else "partial",
        asked=num_cases,
        done=done,
        failed=len(failures),
        started=started,
        ended=ended,
        wall_s=(datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds(),
        failures=failures,
        disturbed=len(measured.disturbed),
        stopped_by=measured.stopped_by,
        precision=measured.precision,
    )


def at_best(ceilings: Ceilings, reference_s: float) -> Ceilings:
    """Ceilings scaled to what the reference kernel was found to take at its best, perhaps after they were measured."""
    assert ceilings.reference_s is not None
    faster = ceilings.reference_s / reference_s

    def scaled(figure: Figure, factor: float) -> Figure:
        return replace(figure, value=factor * figure.value, low=factor * figure.low, high=factor * figure.high)

    cached = ceilings.cache_read_bytes_per_s
    return replace(
        ceilings,
        read_bytes_per_s=scaled(ceilings.read_bytes_per_s, faster),
        flop_per_s={name: scaled(rate, faster) for name, rate in ceilings.flop_per_s.items()},
        launch_s=scaled(ceilings.launch_s, 1 / faster),
        cache_read_bytes_per_s=None if cached is None else scaled(cached, faster),
        reference_s=reference_s,
    )


def _busy(order: ProfileOrder, session: SessionSettings, effort: Effort) -> Callable[[], object]:
    """The parent writing a token, as the work that power is measured of; built only when it is run."""
    weights = parse_format(order.formats[0])
    point = decode_points(next(iter(order.loads.values())))[0]

    @functools.cache
    def made() -> Callable[[], object]:
        model = with_format(order.parent, weights)
        bench = Bench(backend="onnxruntime", weights=weights, model=model, session=session, effort=effort)
        return model_run(bench, model, point)

    return lambda: made()()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def ceilings_in(path: Path, session: SessionSettings, effort: Effort, reference: Reference) -> Ceilings:
    if not path.exists():
        write_json(path, to_data(measure_ceilings(session, effort, reference)))
    return _read_ceilings(path)


def _read_ceilings(path: Path) -> Ceilings:
    return from_data(Ceilings, read_json(path), str(path))
