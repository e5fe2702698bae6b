"""A run as a small file. Every key is a field below; unknown keys and values that no run can use are refused."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import LocalBackend
from blockwright.pipeline.checks import (
    check_above_zero,
    check_at_least,
    check_distinct,
    check_folder_name,
    check_formats,
    check_seed,
)
from blockwright.search.build import NO_RULES, Rules
from blockwright.search.space import SpaceSettings
from blockwright.search.space_file import read_space
from blockwright.statistics import LEAST_VALUES
from blockwright.strict import from_data, to_data

LEAST_WINDOW_TOKENS = 2
"""One token to read and one to predict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSection:
    """How parent and child are shipped."""

    formats: tuple[str, ...]
    """Weight formats to build; budgets are about the first."""
    threads: int

    def __post_init__(self) -> None:
        check_formats("engine.formats", self.formats)
        check_at_least("engine.threads", self.threads, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSection:
    """How long to measure."""

    seconds_per_measurement: float
    backends: tuple[LocalBackend, ...] = ("onnxruntime",)
    """Runtimes to time; budgets are about onnxruntime."""
    trial_processes: int = 8
    """In so many the chosen child is timed beside its parent before it is distilled; 0 to go by the profile alone."""

    def __post_init__(self) -> None:
        check_at_least("profile.trial_processes", self.trial_processes, 0)
        check_above_zero("profile.seconds_per_measurement", self.seconds_per_measurement)
        check_distinct("profile.backends", self.backends)
        if "onnxruntime" not in self.backends:
            raise InputError(
                "profile.backends",
                got=", ".join(self.backends),
                expected="onnxruntime among them, for budgets are about it",
                remedy="Add onnxruntime.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LibrarySection:
    """Blockwise local distillation."""

    tokens: int
    batch_windows: int
    learning_rate: float

    def __post_init__(self) -> None:
        check_at_least("library.batch_windows", self.batch_windows, 1)
        check_above_zero("library.learning_rate", self.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSection:
    """Replace-one-block scores."""

    tokens: int
    metrics: tuple[str, ...] = ("kl",)
    """``kl``, ``lm_loss``, or a function of yours as ``path/to/file.py:function``."""
    task: str | None = None
    """A file of multiple-choice items for the metric ``task``."""
    formats: tuple[str, ...] = ("fp32",)
    """Weight formats to score every candidate in; no fp16 or bf16, for a run builds ONNX Runtime's engines alone."""
    races: bool = False
    """Whether more text is spent only on candidates that the plan still hangs on; `tokens` are the most for one."""

    def __post_init__(self) -> None:
        check_distinct("score.metrics", self.metrics)
        remedy = "Choose one of these; fp16 and bf16, which no run builds, are scored by `blockwright score`."
        check_formats("score.formats", self.formats, remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSection:
    """The choice of blocks."""

    time_limit_s: float
    frontier_points: int
    metric: str = "kl"
    """Which of the scores to go by."""
    rules: Rules = NO_RULES
    """What the child must look like beside its budgets."""
    tolerance: float = 0.0
    """In units of the score: stop this near to the best."""
    pool_size: int = 1
    min_layers_differ: int = 1
    """In which any two plans of the pool differ."""
    compares: bool = False
    """Whether simpler ways to choose stand beside the plan."""

    def __post_init__(self) -> None:
        check_at_least("search.tolerance", self.tolerance, 0)
        check_at_least("search.pool_size", self.pool_size, 1)
        check_at_least("search.min_layers_differ", self.min_layers_differ, 1)
        check_above_zero("search.time_limit_s", self.time_limit_s)
        check_at_least("search.frontier_points", self.frontier_points, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineSection:
    """Beyond sums of scores: whole plans are measured, and candidates scored again around the best."""

    tokens: int
    """To measure a plan on, and what each candidate changes in it."""
    rounds: int
    pool_size: int
    """Plans to begin with."""
    pairs: int = 0
    """Pairs of candidates to measure, for one more plan to begin with."""
    heal_tokens: int = 0
    """To distil the last plans for while choosing among them; 0 for none."""

    def __post_init__(self) -> None:
        check_at_least("refine.rounds", self.rounds, 0)
        check_at_least("refine.pool_size", self.pool_size, 1)
        check_at_least("refine.pairs", self.pairs, 0)
        check_at_least("refine.heal_tokens", self.heal_tokens, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSection:
    """Global distillation of the child."""

    tokens: int
    batch_windows: int
    learning_rate: float
    cosine_weight: float

    def __post_init__(self) -> None:
        check_at_least("distill.batch_windows", self.batch_windows, 1)
        check_above_zero("distill.learning_rate", self.learning_rate)
        check_at_least("distill.cosine_weight", self.cosine_weight, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSection:
    """What is measured at the end."""

    tokens: int
    """Held-out tokens on which child and parent are compared."""
    seconds: float
    """To time each engine for."""
    prompts: tuple[str, ...]
    """What the samples of text in the report begin with."""
    new_tokens: int
    """Length of a sample."""
    temperature: float
    """With which samples are drawn."""

    def __post_init__(self) -> None:
        check_above_zero("measure.seconds", self.seconds)
        check_at_least("measure.new_tokens", self.new_tokens, 1)
        check_at_least("measure.temperature", self.temperature, 0)
        for index, prompt in enumerate(self.prompts):
            if not prompt:
                raise InputError(
                    f"measure.prompts[{index}]",
                    got="an empty prompt",
                    expected="text to go on with",
                    remedy="Write a prompt or remove it.",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is asked for."""

    name: str
    """Of the run's folder."""
    parent: str
    """A checkpoint's folder, or a repository of the Hugging Face hub."""
    text: str
    """A file or folder of text, or ``python`` for the standard library's sources."""
    seed: int
    window_tokens: int
    loads: dict[str, Load]
    budgets: tuple[str, ...]
    engine: EngineSection
    profile: ProfileSection
    library: LibrarySection
    score: ScoreSection
    search: SearchSection
    distill: DistillSection
    measure: MeasureSection
    space: SpaceSettings = field(default_factory=SpaceSettings)
    """In the file: these keys, or the name of a file that holds them."""
    refine: RefineSection | None = None
    """None to stay with the best sum of scores."""

    def __post_init__(self) -> None:
        check_folder_name("name", self.name)
        check_seed("seed", self.seed)
        check_at_least("window_tokens", self.window_tokens, LEAST_WINDOW_TOKENS)
        for name, asked in (("loads", self.loads), ("budgets", self.budgets)):
            if not asked:
                raise InputError(name, got="none", expected="at least one", remedy="Write one; see recipes/demo.yaml.")
        for name, least in (
            ("library", 1),
            ("score", LEAST_VALUES),
            ("refine", LEAST_VALUES),
            ("distill", 1),
            ("measure", LEAST_VALUES),
        ):
            section = getattr(self, name)
            tokens = math.inf if section is None else section.tokens
            if tokens < least * self.window_tokens:
                raise InputError(
                    f"{name}.tokens",
                    got=tokens,
                    expected=f"at least the {least * self.window_tokens} of {least} window(s) (window_tokens)",
                    remedy="Ask for more tokens, or for a shorter window.",
                )


def read_recipe(path: Path, *, parent: str | None = None, text: str | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        path: the YAML file. Relative paths to a parent or a space in it are looked up from the working folder.
        parent: takes the place of the recipe's parent.
        text: takes the place of the recipe's text.

    Raises:
        InputError: the file is missing, is no YAML, or has unknown, missing or unfit keys.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(
            str(path), got=error.strerror, expected="a recipe", remedy="Name a recipe, such as recipes/demo.yaml."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(
            str(path), got=f"no YAML ({error})".replace("\n", " "), expected="YAML", remedy="Correct the file."
        ) from error
    named = data.get("space") if isinstance(data, dict) else None
    space = read_space(Path(named)) if isinstance(named, str) else None
    recipe = from_data(Recipe, data if space is None else data | {"space": to_data(space)}, str(path))
    changes = {name: value for name, value in (("parent", parent), ("text", text)) if value is not None}
    return replace(recipe, **changes)
