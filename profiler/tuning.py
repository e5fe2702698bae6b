"""Times one engine under some settings of its session, in a process of its own, as it is served.

Whether the calling thread takes denormals for zero is decided by the first session of a process and by no later one
(onnxruntime 1.31, tried), and every further session takes room in the caches. So settings are not timed in turn within
a process but in processes in turn, scaled to each other by the reference kernel (see `clock`).

python -m blockwright.profiler.tuning '{"folder": …, "settings": {…}, "load": {…}, "num_threads": 2, "seconds": 0.5}'
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockwright.compile.engine import SessionSettings
from blockwright.compile.session import Decoder
from blockwright.cost import Load
from blockwright.profiler.bench import Run
from blockwright.profiler.clock import Effort, Samples, sample_in_turn
from blockwright.profiler.process import run_module
from blockwright.profiler.reference import make_reference
from blockwright.strict import from_data, to_data

_MIN_TURNS, _NUM_WARM_UP = 3, 2
"""Prompts of a large model take seconds each."""
_KEY_DOUBLINGS = 8
"""Of the shortest key to the longest; shares of attention are denormals from e^-87 down to e^-103."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRequest:
    """What to time."""

    folder: str
    settings: SessionSettings
    load: Load
    num_threads: int
    """The most that any settings of the whole comparison have: decides the clock, one for all."""
    seconds: float
    """How long to measure each of the two times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsSamples:
    """An engine's times under the settings."""

    token: Samples
    """Writing a token, at the middle of the new ones."""
    prompt: Samples
    """Reading the prompt."""


def sample_settings(request: TuningRequest) -> SettingsSamples:
    """Times an engine under the settings.

    Raises:
        InputError: the engine cannot run the load.
    """
    answer = run_module("blockwright.profiler.tuning", [json.dumps(to_data(request))], request.folder)
    return from_data(SettingsSamples, json.loads(answer), "times under settings")


def _sample_here(request: TuningRequest) -> SettingsSamples:
    decoder = Decoder.open(Path(request.folder), request.settings, is_fresh=True)
    judge = make_reference()  # a session too, so it comes second
    effort = Effort(seconds=request.seconds, min_turns=_MIN_TURNS, num_warm_up=_NUM_WARM_UP, judge=judge)
    runs = [_token_run(decoder, request.load), _prompt_run(decoder, request.load)]
    token, prompt = sample_in_turn(runs, effort, request.num_threads)
    return SettingsSamples(token=token, prompt=prompt)


def _token_run(decoder: Decoder, load: Load) -> Run:
    """A step in the middle of the new tokens, behind keys of all lengths.

    Attention to the long ones leaves the others shares that are denormals, so that what these cost is in the time.
    """
    sequences, generator = decoder.start(load.batch, load.total_tokens), np.random.default_rng(0)
    middle_B = np.full(load.batch, load.prompt_tokens + load.new_tokens // 2)
    sequences.make_room(load.total_tokens)
    for array in sequences.cache.values():
        lengths = 2.0 ** generator.uniform(0, _KEY_DOUBLINGS, (*array.shape[:3], 1))
        array[:] = generator.standard_normal(array.shape) * lengths
    ids_B = np.ones(load.batch, dtype=np.int64)

    def step() -> np.ndarray:
        sequences.lengths_B = middle_B.copy()
        return sequences.step(ids_B).argmax(-1)

    return step


def _prompt_run(decoder: Decoder, load: Load) -> Run:
    sequences, vocab_size = decoder.start(load.batch, load.total_tokens), decoder.engine.model.vocab_size
    prompts = [[index % vocab_size for index in range(load.prompt_tokens)]] * load.batch
    return lambda: sequences.prefill(prompts).argmax(-1)


if __name__ == "__main__":
    asked = from_data(TuningRequest, json.loads(sys.argv[1]), "request")
    print(json.dumps(to_data(_sample_here(asked))))
