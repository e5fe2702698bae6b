"""Take in what other programs' benchmarks measured of a parent: times of whole models, added to a copy of a profile."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, assert_never, get_args

from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import ImportedBackend, Profile, WholeRow
from blockwright.pipeline.console import say
from blockwright.pipeline.kit import folder_of_imported
from blockwright.pipeline.lock import at_work
from blockwright.pipeline.marks import write_marked
from blockwright.pipeline.stage import check_is_ours
from blockwright.profiler.imported_costs import check_imported
from blockwright.profiler.imports import NOT_TOLD, Results, Told, WholeTime, joined
from blockwright.profiler.imports_device import check_device
from blockwright.profiler.imports_llama_bench import read_llama_bench
from blockwright.profiler.imports_trtexec import read_trtexec
from blockwright.profiler.imports_vllm import read_vllm
from blockwright.spec import Model, variant_name

Importable = Literal["llama-bench", "vllm", "trtexec"]
SOURCES: tuple[Importable, ...] = get_args(Importable)
_BACKEND_OF: dict[Importable, ImportedBackend] = {"llama-bench": "llama.cpp", "vllm": "vllm", "trtexec": "tensorrt"}
_MOST_PARAMETERS_APART = 0.02
"""Of the parent's: programs count rotary tables and tied heads in ways of their own."""
_SHAPE = ("hidden_size", "num_heads", "head_dim", "vocab_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What to read in."""

    source: Importable
    parent: Model
    """Whose times these are."""
    into: Profile
    """Of the device that they were measured on."""
    files: tuple[tuple[Path, Told], ...]


def import_results(order: ImportOrder, output: Path | None) -> Profile:
    """Writes a profile's copy with the times of some files in it, in place of those that were there at the same points.

    Args:
        order: what to read in.
        output: the copy's folder; None for `folder_of_imported`.

    Raises:
        InputError: a file is broken, of another model or device, or faster than it; its software is of another version
            than that of times that are there; the profile is about a parent of another shape; or somebody is at work
            on it.
    """
    results = [_read(order, path, told) for path, told in order.files]
    for (path, _), result in zip(order.files, results, strict=True):
        check_device(result.device, order.into.device, str(path))
        _check_parent(order.parent, result, str(path))
        for reason in result.left_out:
            say(f"{path.name}: left out {reason}")
    times = joined(results)
    software = _software(order, results)
    model = _same_shape(order)
    profile = replace(order.into, model=model, software=software, wholes=())
    rows = [_row(order, time) for time in times]
    for row in rows:
        check_imported(profile, row)
    profile = replace(profile, wholes=(*_others(order.into.wholes, rows), *rows))
    folder = folder_of_imported(profile) if output is None else output
    check_is_ours(folder, "profile", folder.parent)
    with at_work(folder.parent, f"import-{folder.name}", folder, [path for path, _ in order.files]):
        profile = write_marked(profile, folder)
    devices = ", ".join(dict.fromkeys(result.device for result in results if result.device))
    backend = _BACKEND_OF[order.source]
    say(
        f"{folder}: {len(rows)} times of {backend} {software[backend]}, taken as {profile.name}'s"
        + (f"; the file says {devices}" if devices else "; the files name no device")
    )
    if software[backend] == NOT_TOLD:
        say(
            f"The files do not tell the version of {backend}: say it with --version, for another runs at another speed."
        )
    return profile


def _read(order: ImportOrder, path: Path, told: Told) -> Results:
    result = _parsed(order, path, told)
    return replace(
        result, software={name: _version(name, found, told, path) for name, found in result.software.items()}
    )


def _version(name: str, found: str, told: Told, path: Path) -> str:
    """The file's own, or what was told of it."""
    if told.version is not None and found not in (NOT_TOLD, told.version):
        raise InputError(
            "--version",
            got=told.version,
            expected=f"{found}, the version of {name} in {path}",
            remedy="Leave the flag out: the file tells it.",
        )
    return told.version or found


def _parsed(order: ImportOrder, path: Path, told: Told) -> Results:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), got=str(error), expected="a file of the benchmark's results", remedy="Check the path."
        ) from error
    match order.source:
        case "llama-bench":
            is_gpu = order.into.device.num_cores is None
            return read_llama_bench(text, str(path), told, len(order.parent.layers), is_gpu)
        case "vllm":
            return read_vllm(text, str(path), told)
        case "trtexec":
            return read_trtexec(text, str(path), told)
        case _:
            assert_never(order.source)


def _check_parent(parent: Model, result: Results, place: str) -> None:
    own = parameters(parent)
    if result.num_parameters is not None and abs(result.num_parameters - own) > _MOST_PARAMETERS_APART * own:
        raise InputError(
            f"{place}: parameters",
            got=f"{result.num_parameters:,}",
            expected=f"{own:,}, the parent's",
            remedy="The file is another model's: name its own with --for.",
        )


def _software(order: ImportOrder, results: Sequence[Results]) -> dict[str, str]:
    """The profile's versions with the files'. Each runtime has one version: its rows could not be told apart else."""
    found = dict(order.into.software)
    is_there = {row.backend for row in order.into.wholes}
    for (path, _), result in zip(order.files, results, strict=True):
        for name, version in result.software.items():
            if name in is_there and found.get(name) != version:
                raise InputError(
                    f"{path}: {name}",
                    got=version,
                    expected=f"{found.get(name)}, of the times that are there already",
                    remedy="Another version runs at another speed: read each into a profile of its own, with --out.",
                )
            found[name] = version
            is_there.add(name)
    return found


def _same_shape(order: ImportOrder) -> Model:
    """The parent that the profile is about from now on: its own where it has one."""
    model = order.into.model or order.parent
    for name in _SHAPE:
        if getattr(model, name) != getattr(order.parent, name):
            raise InputError(
                f"profile {order.into.name}: {name}",
                got=getattr(model, name),
                expected=f"{getattr(order.parent, name)}, the parent's",
                remedy="The profile is about another parent: name its own with --for, or another profile with --into.",
            )
    return model


def _row(order: ImportOrder, time: WholeTime) -> WholeRow:
    return WholeRow(
        backend=_BACKEND_OF[order.source],
        format=str(time.weights),
        layers=tuple((variant_name(block.mixer), variant_name(block.ffn)) for block in order.parent.layers),
        is_anchor=True,
        point=time.point,
        time_s=time.seconds.median_s,
        low_s=time.seconds.low_s,
        high_s=time.seconds.high_s,
        num_samples=time.seconds.num_samples,
        num_rejected=0,
        origin="measured",
    )


def _others(there: Sequence[WholeRow], rows: Sequence[WholeRow]) -> list[WholeRow]:
    """The rows that no new one takes the place of."""

    def place(row: WholeRow) -> tuple:
        return row.backend, row.format, row.layers, row.point

    new = {place(row) for row in rows}
    return [row for row in there if place(row) not in new]
