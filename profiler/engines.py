"""Measures finished engines, in turn, so that what drifts meets all of them alike, and in a process of their own.

python -m blockwright.profiler.engines '{"folders": […], "load": {…}, "seconds": 1.5, "reference_s": null}'
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockwright.compile.engine import read_engine
from blockwright.compile.session import Decoder
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.profiler.clock import Effort, Timing, time_in_turn
from blockwright.profiler.memory import peak_bytes
from blockwright.profiler.process import run_module
from blockwright.profiler.reference import make_reference
from blockwright.strict import from_data, to_data


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """Which engines to time, and how."""

    folders: tuple[str, ...]
    load: Load
    seconds: float
    """How long to measure each time of each engine."""
    reference_s: float | None
    """What the reference kernel takes on this machine at its best, if that is known (see `reference`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimes:
    """How long an engine takes, choosing the next token included."""

    time_per_token: Timing
    """At the middle of the new tokens."""
    time_to_first_token: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What an engine was measured to cost at a load."""

    time_per_token: Timing
    time_to_first_token: Timing
    memory_bytes: int


def measure_engines(request: EngineRequest, on_step: Callable[[], None] = lambda: None) -> list[EngineCosts]:
    """Times writing a token and reading a prompt, and takes the peak of memory.

    Args:
        request: the engines, which should have the same number of threads, and the load.
        on_step: called after the times and after the memory.

    Raises:
        InputError: an engine cannot run the load, or they differ in what one process can have but one way.
    """
    times = time_apart(request)
    on_step()
    memory = [peak_bytes(Path(folder), request.load) for folder in request.folders]
    on_step()
    return [
        EngineCosts(time_per_token=t.time_per_token, time_to_first_token=t.time_to_first_token, memory_bytes=peak)
        for t, peak in zip(times, memory, strict=True)
    ]


def time_apart(request: EngineRequest) -> tuple[EngineTimes, ...]:
    """Times engines in turn, in a process of their own.

    Raises:
        InputError: as `measure_engines`.
    """
    _check_can_share(request.folders)
    answer = run_module("blockwright.profiler.engines", [json.dumps(to_data(request))], " and ".join(request.folders))
    return from_data(tuple[EngineTimes, ...], json.loads(answer), "times of engines")


def _check_can_share(folders: Sequence[str]) -> None:
    """Refuses engines of which the first would decide how the others compute."""
    zeroes = {folder: read_engine(Path(folder)).session.zeroes_denormals for folder in folders}
    if len(set(zeroes.values())) > 1:
        raise InputError(
            "engines: zeroes_denormals",
            got=", ".join(f"{value} of {folder}" for folder, value in zeroes.items()),
            expected="the same of all: the first session in a process decides it for the others",
            remedy="Compile all of them without --tune, or measure each against one that has the same.",
        )


def time_engines(request: EngineRequest) -> list[EngineTimes]:
    """Times engines in turn, in this process."""
    decoders = [Decoder.open(Path(folder)) for folder in request.folders]
    num_threads = max(decoder.engine.session.num_threads for decoder in decoders)
    effort = Effort(seconds=request.seconds, judge=make_reference(request.reference_s))
    runs = [make(decoder, request.load) for decoder in decoders for make in (_token_run, _prompt_run)]
    timings = time_in_turn(runs, effort, num_threads)
    return [
        EngineTimes(time_per_token=token, time_to_first_token=first)
        for token, first in zip(timings[::2], timings[1::2], strict=True)
    ]


def _token_run(decoder: Decoder, load: Load) -> Callable[[], object]:
    sequences = decoder.start(load.batch, load.total_tokens)
    logits_BV = sequences.prefill(_prompts(decoder, load))
    ids_B = logits_BV.argmax(-1)
    middle_B = np.full(load.batch, load.prompt_tokens + load.new_tokens // 2)

    def step() -> np.ndarray:
        sequences.lengths_B = middle_B.clip(max=load.total_tokens - 1)
        return sequences.step(ids_B).argmax(-1)

    return step


def _prompt_run(decoder: Decoder, load: Load) -> Callable[[], object]:
    sequences = decoder.start(load.batch, load.total_tokens)
    prompts = _prompts(decoder, load)
    return lambda: sequences.prefill(prompts).argmax(-1)


def _prompts(decoder: Decoder, load: Load) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return generator.integers(0, decoder.engine.model.vocab_size, (load.batch, load.prompt_tokens)).tolist()


if __name__ == "__main__":
    asked = from_data(EngineRequest, json.loads(sys.argv[1]), "request")
    print(json.dumps([to_data(times) for times in time_engines(asked)]))
