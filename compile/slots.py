"""How a runtime lays out a sequence: slots of its cache, and chunks of its prompt."""

SLOT_BUCKET = 64
"""Caches are made in multiples of so many slots: attention may read all slots, so they should not be many too many."""

FIRST_SLOTS = 256
"""Slots that a cache begins with, where so many will be needed; it doubles as the text grows."""

PREFILL_CHUNK = 512
"""Tokens fed at once, so that attention's scores stay small."""


def slots_for(num_tokens: int) -> int:
    """Slots of a cache that holds sequences of up to `num_tokens`."""
    return -(-num_tokens // SLOT_BUCKET) * SLOT_BUCKET


def slots_now(num_tokens: int, most_slots: int) -> int:
    """Slots to have while a sequence is `num_tokens` long: the first of 256, 512, … that holds it, or the most."""
    slots = FIRST_SLOTS
    while slots < num_tokens:
        slots *= 2
    return min(slots, most_slots)


def chunks_of(prompt_tokens: int) -> list[int]:
    """Sizes of the chunks that a prompt is read in."""
    return [min(PREFILL_CHUNK, prompt_tokens - start) for start in range(0, prompt_tokens, PREFILL_CHUNK)]
