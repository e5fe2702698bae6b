"""Whole engines: their memory in a process of their own, and their times side by side."""

from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.profiler.cost_model import exact_memory
from blockwright.profiler.engines import EngineRequest, measure_engines
from blockwright.profiler.memory import peak_bytes
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FP32, Attention, Block, GatedFFN, Model

LOAD = Load(batch=2, prompt_tokens=40, new_tokens=24)
MODEL = llama(
    (Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=1024)),) * 4,
    hidden_size=256,
    num_heads=4,
    head_dim=64,
    vocab_size=512,
    max_positions=64,
)


def _write(folder: Path, model: Model, zeroes_denormals: bool = True) -> Path:
    folder.mkdir()
    order = EngineOrder(
        model=model,
        weights_format=FP32,
        num_positions=64,
        session=SessionSettings(num_threads=1, zeroes_denormals=zeroes_denormals),
        built_from="random weights",
    )
    write_engine(order, random_weights(model), folder)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("engines") / "whole", MODEL)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("engines") / "half", replace(MODEL, layers=MODEL.layers[:2]))


def test_the_peak_of_memory_holds_the_weights_and_the_cache(engine: Path) -> None:
    counted = exact_memory(MODEL, LOAD).of_model(MODEL).value
    assert counted / 2 < peak_bytes(engine, LOAD) < 6 * counted


def test_a_load_that_the_engine_is_too_short_for_is_refused(engine: Path) -> None:
    with pytest.raises(InputError, match="at most 64"):
        peak_bytes(engine, replace(LOAD, new_tokens=30))


def _request(*folders: Path) -> EngineRequest:
    return EngineRequest(folders=tuple(map(str, folders)), load=LOAD, seconds=0.05, reference_s=None)


def test_half_of_the_layers_take_less_time_and_memory(engine: Path, half: Path) -> None:
    steps: list[int] = []
    whole_costs, half_costs = measure_engines(_request(engine, half), on_step=lambda: steps.append(1))
    assert half_costs.time_per_token.calm_s < whole_costs.time_per_token.calm_s
    assert half_costs.time_to_first_token.calm_s < whole_costs.time_to_first_token.calm_s
    assert half_costs.memory_bytes < whole_costs.memory_bytes
    assert len(steps) == 2


def test_an_engine_that_is_not_there_is_named(engine: Path) -> None:
    with pytest.raises(InputError, match="no-engine"):
        measure_engines(_request(engine, engine / "no-engine"))


def test_engines_that_one_process_cannot_run_as_they_are_built_are_refused(half: Path, tmp_path: Path) -> None:
    tuned = _write(tmp_path / "tuned", replace(MODEL, layers=MODEL.layers[:2]), zeroes_denormals=False)
    with pytest.raises(InputError, match=r"zeroes_denormals: got True of .*half, False of .*tuned"):
        measure_engines(_request(half, tuned))
    assert len(measure_engines(_request(tuned, tuned))) == 2
