"""Times of engines by what they write, with engines and a clock whose times are known."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blockwright.compile.sampling import Sampling
from blockwright.cost import Load
from blockwright.errors import InputError
from blockwright.profiler.written import time_written, write_once

LOAD = Load(batch=2, prompt_tokens=5, new_tokens=9)


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class _Decoder:
    """Takes so long for a prompt and for each token behind it; `drift` times longer with every text."""

    def __init__(
        self, clock: _Clock, times_s: tuple[float, float], drift: float = 1.0, slow_first: float = 1.0
    ) -> None:
        self.engine: Any = SimpleNamespace(model=SimpleNamespace(vocab_size=7), stop_ids=(0, 1, 2, 3, 4, 5, 6))
        self.clock, self.times_s, self.drift, self.level = clock, times_s, drift, slow_first
        self.slow_first = slow_first
        self.texts: list[tuple[int, int, int]] = []

    def start(self, batch: int, num_tokens: int) -> Any:
        assert num_tokens == LOAD.total_tokens
        return self

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray: ...

    def step(self, ids_B: np.ndarray) -> np.ndarray: ...

    def write(self, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling) -> Iterator[np.ndarray]:
        assert sampling.temperature == 0
        assert all(0 <= id_ < 7 for prompt in prompts for id_ in prompt)
        self.texts.append((len(prompts), len(prompts[0]), num_tokens))
        first_s, token_s = self.times_s
        self.clock.now_s += first_s * self.level
        for index in range(num_tokens):
            self.clock.now_s += token_s * self.level if index else 0.0
            yield np.zeros(len(prompts), dtype=np.int64)
        self.level *= self.drift / (self.slow_first if len(self.texts) == 1 else 1.0)


def test_times_are_those_of_the_prompt_and_of_each_token_behind_the_first() -> None:
    clock = _Clock()
    decoders = [_Decoder(clock, (0.5, 0.01)), _Decoder(clock, (0.2, 0.004))]
    parent, child = time_written(decoders, LOAD, 10.0, clock)
    for found, (first_s, token_s) in ((parent, (0.5, 0.01)), (child, (0.2, 0.004))):
        for cost, expected in ((found.time_to_first_token, first_s), (found.time_per_token, token_s)):
            assert (cost.value, cost.low, cost.high) == pytest.approx((expected,) * 3)
            assert cost.origin == "measured"
    assert set(decoders[0].texts) == {(2, 5, 9)}
    assert clock.now_s == pytest.approx(20.0, abs=2 * (0.58 + 0.232))


def test_what_the_first_text_takes_to_begin_is_not_counted() -> None:
    clock = _Clock()
    (found,) = time_written([_Decoder(clock, (0.5, 0.01), slow_first=100.0)], LOAD, 1.0, clock)
    assert found.time_per_token.high == pytest.approx(0.01)


def test_engines_take_turns_so_that_drift_meets_them_alike() -> None:
    clock = _Clock()
    decoders = [_Decoder(clock, (0.5, 0.01), drift=1.05), _Decoder(clock, (0.5, 0.01), drift=1.05)]
    first, second = time_written(decoders, LOAD, 4.0, clock)
    assert len(decoders[0].texts) == len(decoders[1].texts) > 6
    assert first == second
    assert first.time_per_token.low < first.time_per_token.value < first.time_per_token.high


def test_five_turns_are_the_least() -> None:
    clock = _Clock()
    decoder = _Decoder(clock, (0.5, 0.01))
    time_written([decoder], LOAD, 1e-9, clock)
    assert len(decoder.texts) == 1 + 5
    write_once(decoder, LOAD)
    assert len(decoder.texts) == 1 + 5 + 1


def test_one_new_token_tells_no_time_per_token() -> None:
    with pytest.raises(InputError, match="--load: got 1 new token; expected 2 or more"):
        time_written([], Load(batch=1, prompt_tokens=5, new_tokens=1), 1.0)
