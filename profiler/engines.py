"""Measures finished engines, in turn, so that what drifts meets all of them alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockwright.compile.session import Decoder
from blockwright.cost import Load
from blockwright.profiler.clock import Effort, Timing, time_in_turn
from blockwright.profiler.memory import peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What an engine was measured to cost at a load."""

    time_per_token: Timing
    time_to_first_token: Timing
    memory_bytes: int


def measure_engines(
    folders: Sequence[Path], load: Load, effort: Effort, on_step: Callable[[], None] = lambda: None
) -> list[EngineCosts]:
    """Times writing a token and reading a prompt, choosing the next token included, and takes the peak of memory.

    A token is written at the middle of the new ones. Engines should have the same number of threads.

    Args:
        folders: the engines.
        load: the workload.
        effort: how long to measure each.
        on_step: called after each of three measurements.
    """
    decoders = [Decoder.open(folder) for folder in folders]
    num_threads = max(decoder.engine.session.num_threads for decoder in decoders)
    decode = time_in_turn([_token_run(decoder, load) for decoder in decoders], effort, num_threads)
    on_step()
    prefill = time_in_turn([_prompt_run(decoder, load) for decoder in decoders], effort, num_threads)
    on_step()
    memory = [peak_bytes(folder, load) for folder in folders]
    on_step()
    return [
        EngineCosts(time_per_token=token, time_to_first_token=first, memory_bytes=peak)
        for token, first, peak in zip(decode, prefill, memory, strict=True)
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
