"""Times engines by what they write, in turn: from the prompt to the first token, and from there to the last.

For runtimes that keep the next token on their device: what counts is the host's clock around all of it, launches and
waiting included, as a user sees it. The turns of all engines alternate, so that what drifts meets them alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from blockwright.compile.generate import AnyDecoder, Writing, write_ids
from blockwright.compile.sampling import Sampling
from blockwright.cost import Cost, Load
from blockwright.errors import InputError

_WARM_UP_TURNS = 1
"""In the first, runtimes choose and compile kernels."""
_LEAST_TURNS = 5
_MOST_RESAMPLED = 2000
_INTERVAL = (0.05, 0.95)
"""As of all measured costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTimes:
    """What an engine takes at a load: medians over turns, their intervals by resampling the turns."""

    time_per_token: Cost
    """Mean over the new tokens of a turn but the first."""
    time_to_first_token: Cost


def time_written(
    decoders: Sequence[AnyDecoder], load: Load, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[WrittenTimes]:
    """Times engines at a load.

    Args:
        decoders: opened engines.
        load: of at least two new tokens.
        seconds: to measure each engine for, warming up aside; five turns at least.
        clock: in seconds.

    Raises:
        InputError: the load has one new token, or an engine cannot hold it.
    """
    if load.new_tokens < 2:
        raise InputError(
            "--load",
            got="1 new token",
            expected="2 or more: the first comes of the prompt",
            remedy="Ask for more, such as chat=1x128+128.",
        )
    turns = [_turns(decoder, load, clock) for decoder in decoders]
    for _ in range(_WARM_UP_TURNS):
        for turn in turns:
            turn()
    found = [list[tuple[float, float]]() for _ in decoders]
    end_s = clock() + seconds * len(decoders)
    while len(found[0]) < _LEAST_TURNS or clock() < end_s:
        for turn, times in zip(turns, found, strict=True):
            times.append(turn())
    return [
        WrittenTimes(
            time_to_first_token=_cost_of([first for first, _ in times]),
            time_per_token=_cost_of([token for _, token in times]),
        )
        for times in found
    ]


def write_once(decoder: AnyDecoder, load: Load) -> object:
    """Writes as `time_written` does; while what it returns is kept, the engine has all the memory that it takes."""
    sequences = decoder.start(load.batch, load.total_tokens)
    _turn(sequences, _prompts(decoder, load), load, time.perf_counter)
    return sequences


def _turns(decoder: AnyDecoder, load: Load, clock: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """What writes once and gives the seconds to the first token, and for each one behind it."""
    sequences, prompts = decoder.start(load.batch, load.total_tokens), _prompts(decoder, load)
    return lambda: _turn(sequences, prompts, load, clock)


def _turn(sequences: Writing, prompts: list[list[int]], load: Load, clock: Callable[[], float]) -> tuple[float, float]:
    start_s = clock()
    tokens = write_ids(sequences, prompts, load.new_tokens, Sampling())
    next(tokens)
    first_s = clock()
    num_more = sum(1 for _ in tokens)
    return first_s - start_s, (clock() - first_s) / max(1, num_more)


def _prompts(decoder: AnyDecoder, load: Load) -> list[list[int]]:
    vocab_size = decoder.engine.model.vocab_size
    return np.random.default_rng(0).integers(0, vocab_size, (load.batch, load.prompt_tokens)).tolist()


def _cost_of(times_s: Sequence[float]) -> Cost:
    found = np.array(times_s)
    drawn = np.random.default_rng(0).choice(found, (_MOST_RESAMPLED, len(found)))
    low, high = np.quantile(np.median(drawn, axis=1), _INTERVAL)
    return Cost(value=float(np.median(found)), low=float(low), high=float(high), origin="measured")
