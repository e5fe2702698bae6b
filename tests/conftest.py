"""A small parent with its text, a recipe for it that takes seconds, and a device made up for one smaller still."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes in: workers share the cores

import random
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from blockwright.cli.main import main
from blockwright.cost import Load
from blockwright.hw_profiles.ceilings import Figure
from blockwright.hw_profiles.device import Device
from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import MemoryRow, Point, Profile, TimeRow, WholeRow
from blockwright.llama import llama
from blockwright.profiler.counted import exact_memory
from blockwright.profiler.measure import layer_names
from blockwright.profiler.points import decode_points, prefill_points
from blockwright.search.scores import Score, ScoreTable
from blockwright.search.space import SpaceSettings, candidates
from blockwright.spec import (
    FP32,
    Attention,
    Block,
    Candidate,
    Format,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    Variant,
    stored_as,
    variant_name,
    with_format,
)
from blockwright.statistics import Estimate
from small import write_parent, write_small_recipe, write_text


def pytest_runtest_call() -> None:
    """ONNX Runtime leaves its thread flushing denormals to zero, in which hypothesis refuses to draw floats."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder in the first worker that asks for it, for all workers: `make_once("text", write_text)`."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, write: Callable[[Path], None]) -> Path:
        folder, done = base / "shared" / name, base / "shared" / f"{name}.done"
        done.parent.mkdir(exist_ok=True)
        with FileLock(done.with_suffix(".lock")):
            if not done.exists():
                write(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def small_text(make_once: Callable[..., Path]) -> Path:
    """A folder of small texts."""
    return make_once("text", write_text)


@pytest.fixture(scope="session")
def small_parent(make_once: Callable[..., Path], small_text: Path) -> Path:
    """An untrained Llama's checkpoint. Tests that change it copy it first."""
    return make_once("parent", partial(write_parent, text=small_text))


@pytest.fixture
def write_recipe(tmp_path: Path, small_parent: Path, small_text: Path) -> Callable[..., Path]:
    """Writes the demo's recipe, made small, with keys replaced: `write_recipe(budgets=[…])`."""
    return partial(write_small_recipe, tmp_path, parent=str(small_parent), text=str(small_text))


@pytest.fixture(scope="session")
def small_run(make_once: Callable[..., Path], small_parent: Path, small_text: Path) -> Path:
    """A folder with the small recipe, its whole `run` and what that `printed`. Tests that change it copy it first."""

    def write(folder: Path) -> None:
        folder.mkdir()
        recipe = write_small_recipe(folder, parent=str(small_parent), text=str(small_text))
        with (folder / "printed").open("w") as printed, redirect_stdout(printed):
            assert main(["run", str(recipe), "--out", str(folder / "run")]) == 0

    return make_once("small-run", write)


@pytest.fixture(scope="session")
def made_up_parent() -> Model:
    """Three layers, the same all of them."""
    return llama(
        (Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=128)),) * 3,
        vocab_size=96,
        hidden_size=64,
        num_heads=4,
        head_dim=16,
        max_positions=256,
    )


@pytest.fixture(scope="session")
def made_up_offered(made_up_parent: Model) -> list[Candidate]:
    """Four mixers and four ffns in every layer."""
    return candidates(made_up_parent, SpaceSettings(kv_head_shares=(0.5,), ffn_width_shares=(0.5,)))


@pytest.fixture(scope="session")
def make_profile(made_up_parent: Model, made_up_offered: list[Candidate]) -> Callable[..., Profile]:
    """Makes up a device on which times add up exactly: `make_profile([load], formats=[FP32], slowness=2.0)`."""

    def make(
        loads: Sequence[Load], formats: Sequence[Format] = (FP32,), slowness: float = 1.0, name: str = "made-up"
    ) -> Profile:
        rows = [_rows_of(made_up_parent, made_up_offered, loads, weights, slowness) for weights in formats]
        times, wholes, memory = (tuple(row for part in parts for row in part) for parts in zip(*rows, strict=True))
        shipped = read_profile(shipped_profiles()[0])
        power = Figure(value=50.0, low=45.0, high=60.0, origin="measured", source="made up")
        return replace(
            shipped,
            name=name,
            device=Device(
                vendor="none", model="made up", architecture="none", num_cores=1, memory_bytes=2**30, features=()
            ),
            software={},
            model=made_up_parent,
            ceilings=replace(shipped.ceilings, busy_w=power),
            times=times,
            wholes=wholes,
            memory=memory,
            accuracy=(),
        )

    return make


@pytest.fixture(scope="session")
def make_table(made_up_parent: Model, made_up_offered: list[Candidate]) -> Callable[..., ScoreTable]:
    """Scores in which the parent's own parts lose nothing, the others something: `make_table(metrics=["kl"])`."""

    def make(
        offered: Sequence[Candidate] | None = None,
        metrics: Sequence[str] = ("kl",),
        formats: Sequence[Format] = (FP32,),
        seed: int = 0,
    ) -> ScoreTable:
        generator, scores = random.Random(seed), []
        for metric in metrics:
            plain = made_up_offered if offered is None else offered
            for c in dict.fromkeys(replace(c, variant=stored_as(c.variant, w)) for w in formats for c in plain):
                is_own = c.variant == getattr(made_up_parent.layers[c.layer], c.part)
                value = 0.0 if is_own else 0.1 + generator.random()
                estimate = Estimate(value=value, low=value, high=value, num_values=4)
                scores.append(Score(candidate=c, metric=metric, estimate=estimate))
        return ScoreTable(parent=made_up_parent, scores=tuple(scores))

    return make


def _rows_of(
    parent: Model, offered: Sequence[Candidate], loads: Sequence[Load], weights: Format, slowness: float
) -> tuple[list[TimeRow], list[WholeRow], list[MemoryRow]]:
    points = dict.fromkeys(point for load in loads for point in (*decode_points(load), *prefill_points(load)))
    parent = with_format(parent, weights)
    stacks = [replace(parent, layers=parent.layers[:depth]) for depth in range(len(parent.layers) + 1)]
    times = [
        _time_row(replace(c, variant=stored_as(c.variant, weights)), point, weights, slowness)
        for point in points
        for c in offered
        if c.layer == 0 and c.variant != NoOp()
    ]
    wholes = [_whole_row(model, point, weights, slowness, model != stacks[2]) for point in points for model in stacks]
    return times, wholes, [_memory_row(parent, load, weights) for load in loads]


def _time_of(variant: Variant, point: Point) -> float:
    is_integer = not isinstance(variant, NoOp) and variant.weights != FP32
    work = point.new_tokens * (0.5 + 0.5 * point.batch) * (0.6 if is_integer else 1.0)
    match variant:
        case Attention(num_kv_heads=num_kv_heads):
            return 1e-6 * (10 + 5 * num_kv_heads) * work
        case GatedFFN(width=width):
            return 1e-6 * 0.3 * width * work
        case LinearMixer() | LinearFFN():
            return 2e-6 * work
        case NoOp():
            return 0.0


def _time_row(candidate: Candidate, point: Point, weights: Format, slowness: float) -> TimeRow:
    return TimeRow(
        backend="onnxruntime",
        format=str(weights),
        part=candidate.part,
        variant=variant_name(candidate.variant),
        point=point,
        time_s=slowness * _time_of(candidate.variant, point),
        low_s=0.0,
        high_s=1.0,
        num_samples=9,
        num_rejected=0,
        origin="measured",
    )


def _whole_row(model: Model, point: Point, weights: Format, slowness: float, is_anchor: bool) -> WholeRow:
    parts = sum(_time_of(part, point) for block in model.layers for part in (block.mixer, block.ffn))
    return WholeRow(
        backend="onnxruntime",
        format=str(weights),
        layers=layer_names(model),
        is_anchor=is_anchor,
        point=point,
        time_s=slowness * (20e-6 + parts),
        low_s=0.0,
        high_s=1.0,
        num_samples=9,
        num_rejected=0,
        origin="measured",
    )


def _memory_row(parent: Model, load: Load, weights: Format) -> MemoryRow:
    counted = int(exact_memory(parent, load).of_model(parent).value)
    return MemoryRow(
        backend="onnxruntime",
        format=str(weights),
        batch=load.batch,
        prompt_tokens=load.prompt_tokens,
        new_tokens=load.new_tokens,
        peak_bytes=counted + 50_000,
        exact_bytes=counted,
        origin="measured",
    )
