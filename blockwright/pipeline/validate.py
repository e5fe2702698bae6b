"""Tries a profile: foretells random children, measures them as engines, and keeps how far off it was in the profile."""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.slots import slots_for
from blockwright.cost import Cost, Load, Quantity
from blockwright.errors import InputError
from blockwright.files import digest_of, read_json, write_json
from blockwright.hw_profiles.device import this_device
from blockwright.hw_profiles.folder import HEAD, read_profile
from blockwright.hw_profiles.profile import Profile, check_is_this_machine, parent_of
from blockwright.hw_profiles.provenance import AccuracyRow
from blockwright.hw_profiles.variants import parse_variant
from blockwright.pipeline.console import progress
from blockwright.pipeline.marks import write_marked
from blockwright.pipeline.software import engine_software
from blockwright.pipeline.stage import Stage, running
from blockwright.profiler.cost_model import predict
from blockwright.profiler.engines import EngineCosts, EngineRequest, measure_engines
from blockwright.profiler.measure import layer_names, mix
from blockwright.profiler.synthetic import random_weights
from blockwright.profiler.validate import Trial, accuracy_of
from blockwright.spec import FFN, FP32, Mixer, Model, NoOp, parse_format, with_format
from blockwright.strict import from_data, to_data

TRIED: tuple[Quantity, ...] = ("time_per_token", "time_to_first_token", "memory")
_TOGETHER = 6
"""Children that are timed in turn, as the whole models of a profile are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOrder:
    """What to try."""

    loads: dict[str, Load]
    formats: tuple[str, ...]
    """Empty for all that the profile has times of."""
    num_children: int
    seed: int
    seconds: float
    """How long to measure each time of each child."""


def validate_profile(folder: Path, order: ValidateOrder) -> Profile:
    """Tries a profile of this machine and writes the table into it, or reads it where that was done before.

    Raises:
        InputError: the profile is of another machine or other software, or has no times of a format or load.
    """
    profile = read_profile(folder)
    home = folder.parent if folder.name == HEAD else folder
    check_is_this_machine(profile, this_device(), engine_software())
    inputs = {"order": to_data(order), "profile": digest_of(to_data(replace(profile, accuracy=())))}
    stage = Stage(name=f"validate-{home.name}", output=home, inputs=inputs)
    if stage.is_done():
        return profile
    with running(stage) as work:
        untried = replace(profile, accuracy=())  # whose intervals know nothing of earlier children
        found = accuracy_of(try_children(untried, order, work))
        return write_marked(replace(profile, accuracy=_joined(profile.accuracy, found)), home)


def try_children(profile: Profile, order: ValidateOrder, work: Path) -> list[Trial]:
    """Foretells and measures children, those not yet in the folder for unfinished work."""
    batches = [
        (name, load, [with_format(child, parse_format(name)) for child in children])
        for name in order.formats or formats_of(profile)
        for load in order.loads.values()
        for children in _batches(draw_children(profile, name, order))
    ]
    trials: list[Trial] = []
    with progress("validate", 2 * len(batches)) as advance:
        for number, (name, load, children) in enumerate(batches):
            tried = [*children, with_format(parent_of(profile), parse_format(name))]
            foretold = [predict(profile, child, load) for child in tried]
            path = work / f"batch-{number:03d}.json"
            if not path.exists():
                write_json(path, to_data(_measure(profile, tried, load, order, advance)))
            costs = from_data(tuple[EngineCosts, ...], read_json(path), str(path))
            trials += _trials(name, foretold, [_measured(cost) for cost in costs])
            advance(name, to=2 * (number + 1))
    return sorted(trials, key=lambda trial: TRIED.index(trial.quantity))


def _measured(costs: EngineCosts) -> dict[Quantity, float]:
    return {
        "time_per_token": costs.time_per_token.calm_s,
        "time_to_first_token": costs.time_to_first_token.calm_s,
        "memory": costs.memory_bytes,
    }


def _trials(
    weights: str, foretold: Sequence[Mapping[Quantity, Cost]], measured: Sequence[Mapping[Quantity, float]]
) -> list[Trial]:
    """Of the children of a batch; its last model is the parent, which tells how far off the machine is."""
    off = {each: foretold[-1][each].value / measured[-1][each] - 1 for each in TRIED}
    return [
        Trial(quantity=each, format=weights, foretold=costs[each], measured=found[each], parent_off=off[each])
        for costs, found in zip(foretold[:-1], measured[:-1], strict=True)
        for each in TRIED
    ]


def draw_children(profile: Profile, weights: str, order: ValidateOrder) -> list[Model]:
    """Different random mixes of the measured variants, none of which the profile was fitted on.

    Raises:
        InputError: there are not so many.
    """
    mixers, ffns = _offered(profile, weights)
    parent, generator = parent_of(profile), random.Random(order.seed)
    seen = {row.layers for row in profile.wholes}

    def drawn() -> Iterator[Model]:
        for _ in range(100 * order.num_children):
            child = mix(parent, mixers, ffns, generator.random(), generator.randrange(2**31))
            if layer_names(child) not in seen:
                seen.add(layer_names(child))
                yield child

    children = list(islice(drawn(), order.num_children))
    if len(children) < order.num_children:
        raise InputError(
            "--children",
            got=order.num_children,
            expected=f"no more than there are mixes that the profile was not fitted on: about {len(children)}",
            remedy="Ask for fewer.",
        )
    return children


def formats_of(profile: Profile) -> tuple[str, ...]:
    """The formats that engines of a profile were timed in."""
    return tuple(dict.fromkeys(row.format for row in profile.times if row.backend == "onnxruntime"))


def _offered(profile: Profile, weights: str) -> tuple[list[Mixer], list[FFN]]:
    rows = [row for row in profile.times if (row.backend, row.format) == ("onnxruntime", weights)]
    if not rows:
        raise InputError(
            "--format",
            got=weights,
            expected="a format that the profile has times of: " + ", ".join(formats_of(profile)),
            remedy="Choose one of them, or profile again with this one.",
        )
    parts = dict.fromkeys(parse_variant(row.part, row.variant, FP32) for row in rows)
    mixers: list[Mixer] = [part for part in parts if isinstance(part, Mixer)]
    ffns: list[FFN] = [part for part in parts if isinstance(part, FFN)]
    names = [names for row in profile.wholes for names in row.layers]
    if any(mixer == "none" for mixer, _ in names):
        mixers.append(NoOp())
    if any(ffn == "none" for _, ffn in names):
        ffns.append(NoOp())
    return mixers, ffns


def _batches(children: list[Model]) -> list[list[Model]]:
    return [children[start : start + _TOGETHER] for start in range(0, len(children), _TOGETHER)]


def _measure(
    profile: Profile, children: list[Model], load: Load, order: ValidateOrder, on_step: Callable[[], None]
) -> list[EngineCosts]:
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / f"child-{index}" for index in range(len(children))]
        for child, folder in zip(children, folders, strict=True):
            write_random_engine(child, load, profile.num_threads, folder)
        request = EngineRequest(
            folders=tuple(map(str, folders)),
            load=load,
            seconds=order.seconds,
            reference_s=profile.ceilings.reference_s,
        )
        return measure_engines(request, on_step)


def write_random_engine(model: Model, load: Load, num_threads: int, folder: Path) -> None:
    """Writes an engine of a model's shape into a new folder, with room for a load: times do not hang on weights."""
    folder.mkdir()
    order = EngineOrder(
        model=model,
        weights_format=None,
        num_positions=slots_for(load.total_tokens),
        session=SessionSettings(num_threads=num_threads),
        built_from="random weights",
    )
    write_engine(order, random_weights(model), folder)


def _joined(before: tuple[AccuracyRow, ...], now: tuple[AccuracyRow, ...]) -> tuple[AccuracyRow, ...]:
    """All rows, the new ones instead of old ones of the same."""
    places = {(row.quantity, row.format, row.phase) for row in now}
    return (*(row for row in before if (row.quantity, row.format, row.phase) not in places), *now)
