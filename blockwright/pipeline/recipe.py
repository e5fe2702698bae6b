"""A run as a small file. Every key is a field below; unknown keys are refused."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.hw_profiles.profile import Backend
from blockwright.search.space import SpaceSettings
from blockwright.strict import from_data


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSection:
    """How parent and child are shipped."""

    formats: tuple[str, ...]
    """Weight formats to build; budgets are about the first."""
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSection:
    """How long to measure."""

    seconds_per_measurement: float
    backends: tuple[Backend, ...] = ("onnxruntime",)
    """Runtimes to time; budgets are about onnxruntime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LibrarySection:
    """Blockwise local distillation."""

    tokens: int
    batch_windows: int
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSection:
    """Replace-one-block scores."""

    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSection:
    """The choice of blocks."""

    time_limit_s: float
    frontier_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSection:
    """Global distillation of the child."""

    tokens: int
    batch_windows: int
    learning_rate: float
    cosine_weight: float


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is asked for."""

    name: str
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


def read_recipe(path: Path, *, parent: str | None = None, text: str | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        path: the YAML file. A relative path to a parent in it is looked up from the working folder.
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
    recipe = from_data(Recipe, data, str(path))
    changes = {name: value for name, value in (("parent", parent), ("text", text)) if value is not None}
    return replace(recipe, **changes)
