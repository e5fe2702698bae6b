"""How a runtime lays out a sequence: slots of its caches, and chunks of its prompt."""

from typing import assert_never

from blockwright.spec import Attention, Full, Model, Reach, Window

SLOT_BUCKET = 64
"""Caches are made in multiples of so many slots: attention may read all slots, so they should not be many too many."""

FIRST_SLOTS = 256
"""Slots that a cache begins with, where so many will be needed; it doubles as the text grows."""

PREFILL_CHUNK = 512
"""Tokens fed at once, so that attention's scores stay small."""


def slots_for(num_tokens: int) -> int:
    """Slots of a cache that holds sequences of up to `num_tokens`."""
    return -(-num_tokens // SLOT_BUCKET) * SLOT_BUCKET


def slots_by_reach(model: Model, slots: int) -> dict[Reach, int]:
    """Slots of a layer's cache, by its reach, where those that hold all have so many.

    A window's tokens go round in fewer. All windows that do so share one number, the one that makes the model's caches
    smallest: TensorRT-RTX 1.7.1 fails to build networks that update caches at three different places («uses before
    defs»), and with one number there are two.
    """
    mixers = [block.mixer for block in model.layers if isinstance(block.mixer, Attention)]
    fewest = {mixer.reach: _fewest_slots(mixer.reach, slots) for mixer in mixers}

    def laid_out(around: int) -> dict[Reach, int]:
        return {reach: around if needed <= around else slots for reach, needed in fewest.items()}

    def size(around: int) -> int:
        by_reach = laid_out(around)
        return sum(mixer.num_kv_heads * by_reach[mixer.reach] for mixer in mixers)

    return laid_out(min({slots, *fewest.values()}, key=lambda around: (size(around), -around)))


def _fewest_slots(reach: Reach, slots: int) -> int:
    """A chunk overwrites only what its own first token need not see any more, and chunks that begin at multiples of
    `PREFILL_CHUNK` never go past a round's end: caches are updated in one piece."""
    match reach:
        case Full():
            return slots
        case Window(num_tokens=num_tokens):
            rounds = -(-(num_tokens + PREFILL_CHUNK - 1) // PREFILL_CHUNK)
            return min(slots, rounds * PREFILL_CHUNK)
        case _:
            assert_never(reach)


def slots_now(num_tokens: int, most_slots: int) -> int:
    """Slots to have while a sequence is `num_tokens` long: the first of 256, 512, … that holds it, or the most."""
    slots = FIRST_SLOTS
    while slots < num_tokens:
        slots *= 2
    return min(slots, most_slots)


def chunks_of(prompt_tokens: int) -> list[int]:
    """Sizes of the chunks that a prompt is read in."""
    return [min(PREFILL_CHUNK, prompt_tokens - start) for start in range(0, prompt_tokens, PREFILL_CHUNK)]
