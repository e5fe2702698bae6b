"""How long our decoders take, whichever runtime they are in, by what anyone writes text with: `generate_ids`."""

import time
from collections.abc import Sequence

from raced_models import WARM_TOKENS

from blockwright.compile.generate import AnyDecoder, generate_ids
from blockwright.compile.sampling import Sampling

GREEDY = Sampling()


def decode_s(decoder: AnyDecoder, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
    """Seconds a token behind the prompts, each on the host before the clock is read, once the first few are written.

    Args:
        decoder: of an engine without stop tokens.
        prompts: a batch.
        num_tokens: timed, behind `WARM_TOKENS` that are not: with these graphs are recorded and caches grow.
    """
    assert not decoder.engine.stop_ids, "a text that ends has fewer tokens"
    stamps = [time.perf_counter() for _ in generate_ids(decoder, prompts, WARM_TOKENS + num_tokens, GREEDY)]
    return (stamps[-1] - stamps[WARM_TOKENS - 1]) / num_tokens


def prefill_s(decoder: AnyDecoder, prompts: Sequence[Sequence[int]]) -> float:
    """Seconds until the first new token of each prompt is on the host."""
    began = time.perf_counter()
    for _ in generate_ids(decoder, prompts, 1, GREEDY):
        pass
    return time.perf_counter() - began
