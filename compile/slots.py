"""How a runtime lays out a sequence: slots of its cache, and chunks of its prompt."""

SLOT_BUCKET = 64
"""Caches are made in multiples of so many slots: attention reads all slots, so they should not be many too many."""

PREFILL_CHUNK = 512
"""Tokens fed at once, so that attention's scores stay small."""


def slots_for(num_tokens: int) -> int:
    """Slots of a cache that holds sequences of up to `num_tokens`."""
    return -(-num_tokens // SLOT_BUCKET) * SLOT_BUCKET


def chunks_of(prompt_tokens: int) -> list[int]:
    """Sizes of the chunks that a prompt is read in."""
    return [min(PREFILL_CHUNK, prompt_tokens - start) for start in range(0, prompt_tokens, PREFILL_CHUNK)]
