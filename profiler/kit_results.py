"""Reads what a kit measured on a device back into a profile."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from blockwright.errors import InputError
from blockwright.files import SUMS, check_sums, read_json
from blockwright.hw_profiles.conditions import conditions_now
from blockwright.hw_profiles.device import cache_bytes, this_device
from blockwright.hw_profiles.machine import Machine
from blockwright.hw_profiles.profile import SCHEMA_VERSION, MemoryRow, Profile, TimeRow, WholeRow
from blockwright.hw_profiles.provenance import Coverage, Method
from blockwright.profiler import kit
from blockwright.profiler.ceilings import ceilings_of
from blockwright.profiler.clock import OUTLIER_RULE_ALONE, WARM_UP, Timing, clock_for
from blockwright.profiler.kit import CEILING, KitOrder
from blockwright.profiler.measure import Case, MemoryCase, PartCase, Row
from blockwright.strict import from_data


@dataclass(frozen=True, slots=True, kw_only=True)
class KitDevice:
    """What the runner wrote of its device."""

    system: str
    architecture: str
    num_usable_cores: int | None
    readings: dict[str, str]
    """Texts of files and answers of commands, by their names."""
    software: dict[str, str]
    threads: int
    seconds: float
    backend: Literal["onnxruntime"]
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What the runner wrote of one case."""

    name: str
    ended: str
    timings: tuple[Timing, ...] = ()
    peaks_bytes: tuple[int, ...] = ()
    error: str | None = None


def read_kit_results(folder: Path) -> Profile:
    """The profile of the device that a kit was run on.

    Args:
        folder: the ``results`` that the runner made.

    Raises:
        InputError: the folder is incomplete, damaged, or of another version of the kit.
    """
    contents = _contents(folder)
    check_sums(
        folder,
        _files(folder),
        f"Bring the whole folder back again, with its {SUMS}; or run the kit again on the device.",
    )
    order, device = _order(contents, folder), _device(folder)
    machine = _machine(device)
    cases = order.cases(device.threads)
    results = _results(folder, [case["name"] for case in contents["cases"]])
    rows = [row for name, result in results.items() if name in cases for row in _rows(cases[name], result, folder)]
    ended = max(result.ended for result in results.values())
    identity = this_device(machine)
    return Profile(
        schema_version=SCHEMA_VERSION,
        name=identity.name,
        device=identity,
        conditions=conditions_now(machine),
        software=device.software,
        num_threads=device.threads,
        created=ended,
        model=order.parent,
        ceilings=ceilings_of(
            _ceiling_timings(results, folder),
            f"{ended[:10]}, ONNX Runtime by a kit, {device.threads} thread(s)",
            num_units=identity.num_cores,
            cache_bytes=cache_bytes(machine),
            reference_s=None,
        ),
        method=Method(
            clock=clock_for(device.threads, device.system),
            warm_up=WARM_UP,
            outlier_rule=OUTLIER_RULE_ALONE,
            seconds=device.seconds,
        ),
        coverage=_coverage(len(contents["cases"]), results, device.started, ended),
        times=tuple(row for row in rows if isinstance(row, TimeRow)),
        wholes=tuple(row for row in rows if isinstance(row, WholeRow)),
        memory=tuple(row for row in rows if isinstance(row, MemoryRow)),
    )


def _device(folder: Path) -> KitDevice:
    return from_data(KitDevice, read_json(folder / "device.json"), str(folder / "device.json"))


def _files(folder: Path) -> list[str]:
    """What the runner wrote and is read here."""
    return ["cases.json", "device.json", *sorted(path.name for path in folder.glob("case-*.json"))]


def _contents(folder: Path) -> Mapping[str, Any]:
    """What the kit was, as it travels with its results."""
    if not (folder / "cases.json").is_file():
        raise InputError(
            str(folder),
            got="no cases.json in it" if folder.is_dir() else "no folder",
            expected="the folder results/ that a kit's run.py wrote on the device",
            remedy="Name that folder; for another program's file name the program first: blockwright profile import "
            "llama-bench FILE.",
        )
    contents = read_json(folder / "cases.json")
    version = contents.get("schema_version") if isinstance(contents, Mapping) else None
    if version != kit.SCHEMA_VERSION:
        raise InputError(
            f"{folder / 'cases.json'}: schema_version",
            got=version,
            expected=str(kit.SCHEMA_VERSION),
            remedy="Pack the kit again with this version of Blockwright and measure again.",
        )
    return contents


def _order(contents: Mapping[str, Any], folder: Path) -> KitOrder:
    return from_data(KitOrder, contents["order"], f"{folder / 'cases.json'}: order")


def _machine(device: KitDevice) -> Machine:
    """The device, as far as it told of itself."""
    return Machine(
        system=device.system,
        architecture=device.architecture,
        num_usable_cores=device.num_usable_cores,
        read=device.readings.get,
        run=device.readings.get,
    )


def _results(folder: Path, names: list[str]) -> dict[str, _Result]:
    """What was measured, by the names of the cases, failed ones included."""
    found: dict[str, _Result] = {}
    for number, name in enumerate(names):
        path = folder / f"case-{number:04d}.json"
        if not path.exists():
            continue
        result = from_data(_Result, read_json(path), str(path))
        if result.name != name:
            raise InputError(
                f"{path}: name",
                got=result.name,
                expected=name,
                remedy="Results of two kits are mixed here: bring back the folder of one run.",
            )
        found[name] = result
    if not any(result.error is None for result in found.values()):
        raise InputError(
            str(folder),
            got="no result that succeeded",
            expected="case-0000.json and so on, as the kit's run.py writes them",
            remedy="Run the kit on the device, and bring the whole folder results/ back.",
        )
    return found


def _rows(case: Case, result: _Result, folder: Path) -> list[Row]:
    if result.error is not None:
        return []
    _check_number(result, len(case.models) if not isinstance(case, PartCase) else 3, folder)  # 2 stacks, difference
    match case:
        case PartCase():
            return [case.row(result.timings[-1])]
        case MemoryCase():
            return [case.row(model, peak) for model, peak in zip(case.models, result.peaks_bytes, strict=True)]
        case _:
            return list(case.rows(result.timings))


def _check_number(result: _Result, expected: int, folder: Path) -> None:
    if (found := len(result.timings) + len(result.peaks_bytes)) != expected:
        raise InputError(
            f"{folder}: {result.name}",
            got=f"{found} measurements",
            expected=str(expected),
            remedy="The file is damaged: delete it and run the kit again, it measures what is missing.",
        )


def _ceiling_timings(results: Mapping[str, _Result], folder: Path) -> dict[str, Timing]:
    measured = [r for name, r in results.items() if name.startswith(CEILING) and r.error is None]
    for result in measured:
        _check_number(result, 1, folder)
    return _complete({result.name.removeprefix(CEILING): result.timings[0] for result in measured}, folder)


def _complete(timings: dict[str, Timing], folder: Path) -> dict[str, Timing]:
    from_names = {case.name for case in kit.ceiling_cases()}
    if missing := sorted(from_names - timings.keys()):
        raise InputError(
            f"{folder}: ceilings",
            got=f"none of {', '.join(missing)}",
            expected="all ceilings measured: everything else is a share of them",
            remedy="Run the kit again: it measures what is missing, and tries again what failed.",
        )
    return timings


def _coverage(asked: int, results: Mapping[str, _Result], started: str, ended: str) -> Coverage:
    failures = tuple(f"{name}: {result.error}" for name, result in results.items() if result.error is not None)
    done = len(results) - len(failures)
    return Coverage(
        status="complete" if done == asked else "partial",
        asked=asked,
        done=done,
        failed=len(failures),
        started=started,
        ended=ended,
        wall_s=(datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds(),
        failures=failures,
    )
