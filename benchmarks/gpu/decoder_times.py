"""How long our decoders take, whichever runtime they are in, by what anyone writes text with: `write_ids`.

Sequences are started beforehand and used again: their caches, graphs and buffers are made in the first run, which is
not to be counted. Clocks go from prompts on the host to tokens on the host.
"""

import time
from collections.abc import Sequence

from raced_models import WARM_TOKENS

from blockwright.compile.generate import Writing, write_ids
from blockwright.compile.sampling import Sampling

GREEDY = Sampling()


def decode_s(sequences: Writing, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
    """Seconds a token behind the prompts, each on the host before the clock is read, once the first few are written.

    Args:
        sequences: with room for all of it.
        prompts: a batch.
        num_tokens: timed, behind `WARM_TOKENS` that are not.
    """
    stamps = [time.perf_counter() for _ in write_ids(sequences, prompts, WARM_TOKENS + num_tokens, GREEDY)]
    return (stamps[-1] - stamps[WARM_TOKENS - 1]) / num_tokens


def prefill_s(sequences: Writing, prompts: Sequence[Sequence[int]]) -> float:
    """Seconds until the first new token of each prompt is on the host."""
    began = time.perf_counter()
    for _ in write_ids(sequences, prompts, 1, GREEDY):
        pass
    return time.perf_counter() - began
