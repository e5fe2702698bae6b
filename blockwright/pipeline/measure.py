"""Stage: measure what was promised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blockwright.compile.flavour import best_flavour
from blockwright.compile.generate import generate_text, open_tokenizer
from blockwright.compile.sampling import Sampling
from blockwright.compile.session import Decoder
from blockwright.cost import Cost, Load, Quantity, exact
from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.files import digest_of_files
from blockwright.hw_profiles.device import this_device
from blockwright.hw_profiles.profile import Profile
from blockwright.measured import (
    SCHEMA_VERSION,
    Measured,
    MeasuredCost,
    Quality,
    Sample,
    read_measured,
    write_measured,
)
from blockwright.model.parent import Parent, load_model
from blockwright.pipeline.console import progress
from blockwright.pipeline.inputs import (
    Text,
    check_text_suits,
    checkpoint_digest,
    load_checkpoint,
    open_checkpoint,
    read_text,
    windows_to_judge_by,
)
from blockwright.pipeline.promises import check_has_tables, check_is_of_device, check_is_of_engine
from blockwright.pipeline.software import engine_software
from blockwright.pipeline.stage import Stage, running
from blockwright.pipeline.tune import settings_words
from blockwright.profiler.clock import Timing
from blockwright.profiler.engines import EngineRequest, measure_engines
from blockwright.search.plan import Plan
from blockwright.strict import to_data
from blockwright.train.quality import compare
from blockwright.train.windows import Windows

_STEPS_PER_LOAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a run made, and is to be measured."""

    parent: Parent
    profile: Profile
    """Tells a calm machine from a disturbed one."""
    realised: Path
    distilled: Path
    engines: tuple[tuple[Path, Path], ...]
    """The parent's and the child's engine in each format, those of the budgets first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOrder:
    """How to measure."""

    text: str
    window_tokens: int
    tokens: int
    """Held-out tokens to compare quality on."""
    loads: dict[str, Load]
    seconds: float
    prompts: tuple[str, ...]
    new_tokens: int
    temperature: float
    seed: int


def measure_run(made: Made, order: MeasureOrder, output: Path) -> Measured:
    """Measures costs, quality and writing, or reads what was measured before of the same files on this machine."""
    text = read_text(order.text)
    device, software = this_device(), engine_software()
    stage = _stage(made, order, text, output, {"device": device.digest, "software": software})
    if (before := stage.reuse(lambda: read_measured(output))) is not None:
        return before
    windows = windows_to_judge_by(
        made.parent, text.held_out, length=order.window_tokens, num_tokens=order.tokens, seed=order.seed
    )
    num_steps = _STEPS_PER_LOAD * len(order.loads) * len(made.engines) + 2 + len(order.prompts)
    reference_s = made.profile.ceilings.reference_s
    with running(stage), progress("measure", num_steps) as advance:
        costs = [
            cost
            for pair in made.engines
            for cost in measure_costs(pair, order.loads, order.seconds, reference_s, advance)
        ]
        realised, distilled = measure_quality(made.parent, [made.realised, made.distilled], windows, advance)
        samples = _samples(made.engines[0], order, advance)
        measured = Measured(
            schema_version=SCHEMA_VERSION,
            device=f"{device.model}, {device.num_cores} cores",
            software=software,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            loads=order.loads,
            costs=tuple(costs),
            realised=realised,
            distilled=distilled,
            held_out_tokens=windows.ids_NT.numel(),
            samples=samples,
        )
        write_measured(measured, output)
    return measured


def _stage(made: Made, order: MeasureOrder, text: Text, output: Path, machine: dict[str, Any]) -> Stage:
    inputs = {
        "order": to_data(order),
        "parent": checkpoint_digest(made.parent.folder),
        "realised": checkpoint_digest(made.realised),
        "distilled": checkpoint_digest(made.distilled),
        "engines": [digest_of_files(list(pair)) for pair in made.engines],
        "text": text.digest,
    }
    return Stage(name="measure", output=output, inputs=inputs | machine)


def _samples(pair: tuple[Path, Path], order: MeasureOrder, on_step: Callable[[], None]) -> tuple[Sample, ...]:
    """What parent and child write after each prompt."""
    parent_engine, child_engine = pair
    samples: list[Sample] = []
    for prompt in order.prompts:
        parent, child = write_sample(parent_engine, prompt, order), write_sample(child_engine, prompt, order)
        samples.append(Sample(prompt=prompt, parent=parent, child=child))
        on_step()
    return tuple(samples)


def measure_costs(
    pair: tuple[Path, Path],
    loads: Mapping[str, Load],
    seconds: float,
    reference_s: float | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> list[MeasuredCost]:
    """Measures two engines in turn at every load.

    Args:
        pair: the parent's engine and the child's.
        loads: by name.
        seconds: how long to measure each time of each engine.
        reference_s: what the reference kernel took at its best when this machine was profiled.
        on_step: called twice a load.
    """
    engines = [Decoder.open(folder).engine for folder in pair]
    counts = [exact(parameters(engine.model)) for engine in engines]
    costs: list[MeasuredCost] = []
    for name, load in loads.items():
        folders = (str(pair[0]), str(pair[1]))
        request = EngineRequest(folders=folders, load=load, seconds=seconds, reference_s=reference_s)
        parent, child = measure_engines(request, on_step)
        pairs: dict[Quantity, tuple[Cost, Cost]] = {
            "time_per_token": (_cost_of(parent.time_per_token), _cost_of(child.time_per_token)),
            "time_to_first_token": (_cost_of(parent.time_to_first_token), _cost_of(child.time_to_first_token)),
            "memory": (exact(parent.memory_bytes), exact(child.memory_bytes)),
            "parameters": (counts[0], counts[1]),
        }
        for quantity, (parent_cost, child_cost) in pairs.items():
            costs.append(
                MeasuredCost(
                    format=engines[1].format, quantity=quantity, load=name, parent=parent_cost, child=child_cost
                )
            )
    return costs


def check_promises_hold_here(plan: Plan, engine: Path, against: Path) -> None:
    """Refuses to hold a plan's promises against another machine or engine than they were made for.

    Args:
        plan: the child's.
        engine: the child's.
        against: the parent's engine, which promises are of too.

    Raises:
        InputError: the plan rests on another machine's profile, or is about another format, runtime or flavour; or the
            engines run with different settings.
    """
    here, built = this_device(), Decoder.open(engine).engine
    check_is_of_engine(plan, built.format, built.target)
    check_has_tables(built.model, plan.child)
    if built.flavour != best_flavour(built.model):
        raise InputError(
            "plan: flavour",
            got=f"promises about {best_flavour(built.model)}",
            expected=f"the engine's, {built.flavour}",
            remedy="Compile the child without --flavour, or measure this engine without --plan.",
        )
    if built.session != (beside := Decoder.open(against).engine.session):
        raise InputError(
            "plan: settings",
            got=settings_words(built.session),
            expected=f"those of {against}, {settings_words(beside)}: a plan's promises are made with one for both",
            remedy="Compile both with the same --threads and without --tune, or measure without --plan.",
        )
    check_is_of_device(plan, here.name, "machine")


def measure_quality(
    parent: Parent, children: Sequence[Path], windows: Windows, on_step: Callable[[], None] = lambda: None
) -> list[Quality]:
    """Compares children with their parent on the same windows."""
    model = load_model(parent)
    check_text_suits(model, windows)
    qualities: list[Quality] = []
    for folder in children:
        qualities.append(compare(load_checkpoint(open_checkpoint(str(folder))), model, windows))
        on_step()
    return qualities


def write_sample(engine: Path, prompt: str, order: MeasureOrder) -> str:
    """How an engine goes on with a prompt."""
    sampling = Sampling(temperature=order.temperature, seed=order.seed)
    return "".join(generate_text(Decoder.open(engine), open_tokenizer(engine), prompt, order.new_tokens, sampling))


def _cost_of(timing: Timing) -> Cost:
    return Cost(value=timing.calm_s, low=timing.low_s, high=timing.high_s, origin="measured")
