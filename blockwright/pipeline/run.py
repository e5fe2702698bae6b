"""All stages in order: from a recipe to a report."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import yaml

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.files import new_file
from blockwright.hw_profiles.device import this_device
from blockwright.hw_profiles.folder import read_profile
from blockwright.hw_profiles.profile import Profile, check_is_this_machine
from blockwright.measured import Measured
from blockwright.model.parent import Parent, load_model, load_tokenizer, open_parent
from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
from blockwright.pipeline.console import say
from blockwright.pipeline.distill import distill_child
from blockwright.pipeline.distill_order import DistillOrder
from blockwright.pipeline.inputs import check_text_suits, read_text, windows_to_judge_by
from blockwright.pipeline.library import LibraryOrder, build_library
from blockwright.pipeline.lock import locked
from blockwright.pipeline.measure import Made, MeasureOrder, measure_run
from blockwright.pipeline.profile import ProfileOrder, profile_machine
from blockwright.pipeline.race import race_for
from blockwright.pipeline.realise import realise_plan
from blockwright.pipeline.recipe import MeasureSection, Recipe, RefineSection
from blockwright.pipeline.refine import RefineOrder, refine_plan
from blockwright.pipeline.report import report_run
from blockwright.pipeline.score import ScoreOrder, read_yardsticks, score_library
from blockwright.pipeline.search import SearchOrder, check_budgets, check_reachable, search_plan
from blockwright.pipeline.software import engine_software, say_what_is_missing
from blockwright.pipeline.tried import TRIED, TRIED_REFINED, TryOrder, choose_tried
from blockwright.profiler.check import check_utilisation
from blockwright.search.offered import formats_for
from blockwright.search.plan import Plan
from blockwright.search.space import candidates
from blockwright.spec import Format, parse_format
from blockwright.statistics import LEAST_VALUES
from blockwright.strict import to_data

RECIPE, PROFILE, LIBRARY, SCORES, PLAN = "recipe.yaml", "profile", "library", "scores.parquet", "plan.json"
REFINED = "refined.json"
REALISED, CHILD, ENGINES, MEASURED, REPORT = "realised", "child", "engine/onnxruntime", "measured.json", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    plan: Plan
    measured: Measured


def run(recipe: Recipe, folder: Path, profile: str | None = None) -> Run:
    """Runs every stage that is not done yet.

    Args:
        recipe: what is asked for.
        folder: of the run; a killed run in it is gone on with.
        profile: a ready profile of this machine, to use instead of measuring one.

    Raises:
        InputError: something about the input has to be mended; what can be checked early is.
    """
    parent = check_recipe(recipe)
    say_what_is_missing()
    ready = None if profile is None else _ready_profile(recipe, profile)
    with locked(folder):
        _write_recipe(recipe, folder / RECIPE)
        hardware = ready or profile_machine(profile_order(recipe, parent), folder / PROFILE)
        profile_file = profile or folder / PROFILE
        searched = search_order(recipe)
        offered, formats = candidates(parent.spec, recipe.space), allowed_formats(recipe, parent)
        check_reachable(parent.spec, offered, {hardware.name: hardware}, searched, formats)
        build_library(parent, library_order(recipe), folder / LIBRARY)
        _score(recipe, parent, hardware, folder)
        plan, hardware = _choose(recipe, parent, profile_file, folder)
        chosen = folder / (PLAN if recipe.refine is None else REFINED)
        realise_plan(parent, chosen, folder / LIBRARY, folder / REALISED)
        distill_child(folder / REALISED, parent, distill_order(recipe), folder / CHILD)
        made = Made(
            parent=parent,
            profile=hardware,
            realised=folder / REALISED,
            distilled=folder / CHILD,
            engines=tuple(_engines(recipe, parent, folder, weights) for weights in recipe.engine.formats),
        )
        measured = measure_run(made, measure_order(recipe), folder / MEASURED)
        report_run(folder, folder / REPORT)
    return Run(folder=folder, plan=plan, measured=measured)


def check_recipe(recipe: Recipe) -> Parent:
    """Finds what can be found wrong without work: the parent, its weights and tokenizer, the text, budgets, formats.

    Raises:
        InputError: says what to mend.
    """
    check_budgets(recipe.loads, recipe.budgets)
    parent = open_parent(recipe.parent)
    for layer in range(len(parent.spec.layers)):
        for asked in (recipe.engine.formats[:1], recipe.score.formats):
            formats_for(layer, list(map(parse_format, asked)), allowed_formats(recipe, parent))
    read_yardsticks(score_order(recipe), parent)
    _check_loads(recipe.loads, parent)
    _check_prompts(recipe.measure, parent)
    text, model = read_text(recipe.text), load_model(parent)
    length, some_tokens = recipe.window_tokens, LEAST_VALUES * recipe.window_tokens
    for documents in (text.held_out, text.training):
        some = windows_to_judge_by(parent, documents, length=length, num_tokens=some_tokens, seed=recipe.seed)
        check_text_suits(model, some)
    say(f"parent    {recipe.parent}: {len(parent.spec.layers)} layers, {recipe.text} as text")
    return parent


def allowed_formats(recipe: Recipe, parent: Parent) -> tuple[tuple[Format, ...], ...]:
    """What the recipe's space says that each layer may be stored in; see `search/offered.py`."""
    return recipe.space.formats_by_layer(len(parent.spec.layers))


def library_order(recipe: Recipe) -> LibraryOrder:
    """What the recipe says about the library."""
    return LibraryOrder(
        space=recipe.space,
        text=recipe.text,
        window_tokens=recipe.window_tokens,
        seed=recipe.seed,
        **asdict(recipe.library),
    )


def score_order(recipe: Recipe) -> ScoreOrder:
    """What the recipe says about scoring."""
    settings = {name: value for name, value in asdict(recipe.score).items() if name != "races"}
    return ScoreOrder(text=recipe.text, window_tokens=recipe.window_tokens, seed=recipe.seed, **settings)


def refine_order(recipe: Recipe, section: RefineSection) -> RefineOrder:
    """What the recipe says about going beyond sums of scores."""
    return RefineOrder(
        text=recipe.text,
        window_tokens=recipe.window_tokens,
        seed=recipe.seed,
        batch_windows=recipe.distill.batch_windows,
        learning_rate=recipe.distill.learning_rate,
        cosine_weight=recipe.distill.cosine_weight,
        **asdict(section),
    )


def search_order(recipe: Recipe) -> SearchOrder:
    """What the recipe says about the search."""
    return SearchOrder(
        loads={name: (load,) for name, load in recipe.loads.items()},
        budgets=recipe.budgets,
        formats=recipe.engine.formats[:1],
        backend="onnxruntime",
        **{field.name: getattr(recipe.search, field.name) for field in fields(recipe.search)},
    )


def distill_order(recipe: Recipe) -> DistillOrder:
    """What the recipe says about distillation."""
    section = recipe.distill
    return DistillOrder(
        text=recipe.text,
        window_tokens=recipe.window_tokens,
        seed=recipe.seed,
        tokens=section.tokens,
        batch_windows=section.batch_windows,
        learning_rate=section.learning_rate,
        loss=f"kl+{section.cosine_weight}*cosine",
    )


def measure_order(recipe: Recipe) -> MeasureOrder:
    """What the recipe says about measuring."""
    return MeasureOrder(
        text=recipe.text,
        window_tokens=recipe.window_tokens,
        seed=recipe.seed,
        loads=recipe.loads,
        **asdict(recipe.measure),
    )


def _score(recipe: Recipe, parent: Parent, hardware: Profile, folder: Path) -> None:
    order, decide = score_order(recipe), None
    if recipe.score.races:
        race, decide = race_for(search_order(recipe), {hardware.name: hardware})
        order = replace(order, race=race)
    score_library(parent, folder / LIBRARY, order, folder / SCORES, decide)


def _choose(recipe: Recipe, parent: Parent, profile: str | Path, folder: Path) -> tuple[Plan, Profile]:
    """The plan whose child was tried, and the profile that foretold it. What sums of scores chose is tried before whole
    plans are measured, for that takes minutes."""
    searched = search_order(recipe)

    def search(place: str | Path) -> Plan:
        return search_plan(folder / SCORES, [place], searched, folder / PLAN)

    def refine(place: str | Path) -> Plan:
        assert recipe.refine is not None
        paths = {"library": folder / LIBRARY, "scores": folder / SCORES, "output": folder / REFINED}
        return refine_plan(parent, paths, [place], searched, refine_order(recipe, recipe.refine))

    order = TryOrder(
        name=TRIED,
        parent_format=parse_format(recipe.engine.formats[0]),
        processes=recipe.profile.trial_processes,
        seconds=2 * recipe.profile.seconds_per_measurement,
    )
    plan, place = choose_tried(search, profile, order, folder)
    if recipe.refine is not None:
        plan, place = choose_tried(refine, place, replace(order, name=TRIED_REFINED), folder)
    return plan, read_profile(place)


def _ready_profile(recipe: Recipe, name: str) -> Profile:
    hardware = read_profile(name)
    check_utilisation(hardware)
    check_is_this_machine(hardware, this_device(), engine_software())
    if hardware.num_threads != recipe.engine.threads:
        raise InputError(
            f"profile {hardware.name}: threads",
            got=hardware.num_threads,
            expected=f"{recipe.engine.threads}, the recipe's engine.threads",
            remedy="Profile again with as many threads as the engine will have.",
        )
    return hardware


def profile_order(recipe: Recipe, parent: Parent) -> ProfileOrder:
    """What the recipe says about profiling."""
    return ProfileOrder(
        parent=parent.spec,
        space=recipe.space,
        loads=recipe.loads,
        formats=recipe.engine.formats[:1],
        threads=recipe.engine.threads,
        seconds_per_measurement=recipe.profile.seconds_per_measurement,
        backends=recipe.profile.backends,
    )


def _engines(recipe: Recipe, parent: Parent, folder: Path, weights: str) -> tuple[Path, Path]:
    order = CompileOrder(
        format=weights,
        threads=recipe.engine.threads,
        num_positions=parent.spec.max_positions,
    )
    parent_engine, child_engine = (folder / ENGINES / f"{name}-{weights}" for name in ("parent", "child"))
    compile_checkpoint(str(parent.folder), order, parent_engine, home=folder)
    compile_checkpoint(str(folder / CHILD), order, child_engine, home=folder)
    return parent_engine, child_engine


def _check_loads(loads: dict[str, Load], parent: Parent) -> None:
    for name, load in loads.items():
        if load.total_tokens > parent.spec.max_positions:
            raise InputError(
                f"loads.{name}",
                got=f"{load.total_tokens} tokens, prompt and new ones together",
                expected=f"at most the parent's context of {parent.spec.max_positions}",
                remedy="Shorten the load.",
            )


def _check_prompts(measure: MeasureSection, parent: Parent) -> None:
    tokenizer = load_tokenizer(parent).backend_tokenizer
    for index, prompt in enumerate(measure.prompts):
        num_tokens = len(tokenizer.encode(prompt).ids) + measure.new_tokens
        if num_tokens > parent.spec.max_positions:
            raise InputError(
                f"measure.prompts[{index}]",
                got=f"{num_tokens} tokens, with the {measure.new_tokens} of measure.new_tokens",
                expected=f"at most the parent's context of {parent.spec.max_positions}",
                remedy="Shorten the prompt or measure.new_tokens.",
            )


def _write_recipe(recipe: Recipe, path: Path) -> None:
    with new_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_data(recipe), sort_keys=False))
