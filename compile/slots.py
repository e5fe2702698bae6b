"""How a runtime lays out a sequence: slots of its caches, and chunks of its prompt."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How a layer's keys and values are held; layers that hold them alike share masks and places to write to."""

    reach: Reach
    slots: int | str
    """How many, or the name of a number that is known when it runs."""
    goes_round: bool
    """A token's slot is what is left of its position after whole rounds; else slot and position are the same."""

    @property
    def num_slots(self) -> int:
        """The slots, where their number is known."""
        assert isinstance(self.slots, int), "known only when it runs"
        return self.slots


def caches_of(model: Model, slots: int | str) -> dict[int, Held]:
    """How each layer with attention holds its tokens, where those that hold all have so many slots.

    A window's tokens go round in fewer. TensorRT-RTX 1.7.1 limits this («uses before defs», or it crashes): it fails to
    build networks that write to caches at three different places, so all windows that go round share one number of
    slots, the one that makes the model's caches smallest.
    """
    mixers = {index: block.mixer for index, block in enumerate(model.layers) if isinstance(block.mixer, Attention)}
    if isinstance(slots, str):
        return {index: Held(reach=mixer.reach, slots=slots, goes_round=False) for index, mixer in mixers.items()}
    fewest = {index: _fewest_slots(mixer.reach, slots) for index, mixer in mixers.items()}

    def laid_out(around: int) -> dict[int, int]:
        return {index: around if needed <= around else slots for index, needed in fewest.items()}

    def size(around: int) -> int:
        return sum(mixers[index].num_kv_heads * own for index, own in laid_out(around).items())

    chosen = laid_out(min({slots, *fewest.values()}, key=lambda around: (size(around), -around)))
    return {
        index: Held(reach=mixer.reach, slots=chosen[index], goes_round=chosen[index] < slots)
        for index, mixer in mixers.items()
    }


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
