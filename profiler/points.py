"""Where a load takes place: how many new tokens at once, behind how many that attention reads."""

from typing import Literal

from blockwright.compile.cpu_library import attends
from blockwright.compile.slots import PREFILL_CHUNK, chunks_of, slots_for
from blockwright.cost import Load
from blockwright.hw_profiles.device import OPERATORS, RUNTIMES_OWN
from blockwright.hw_profiles.profile import Backend, Point, Profile
from blockwright.spec import Model

Reads = Literal["slots", "tokens"]
"""What attention reads: all slots of a cache, as ONNX Runtime's operator does, or the tokens in it, as ours."""


def reads_of(profile: Profile, backend: Backend) -> Reads:
    """What attention reads of a cache where a profile was measured."""
    if profile.model is None:
        return "slots"
    return reads_with(profile.software.get(OPERATORS, RUNTIMES_OWN), backend, profile.model)


def reads_with(operators: str, backend: Backend, model: Model) -> Reads:
    """What a model's attention reads of a cache with somebody's operators, for ours do not know heads of any size."""
    is_ours = backend == "onnxruntime" and operators != RUNTIMES_OWN and attends(model.head_dim)
    return "tokens" if is_ours else "slots"


def decode_points(load: Load, reads: Reads = "slots") -> list[Point]:
    """Where writing one token of a load takes place: halfway through the new ones, where only tokens are read."""
    middle = load.prompt_tokens + load.new_tokens // 2
    slots = slots_for(load.total_tokens) if reads == "slots" else middle
    return [Point(batch=load.batch, new_tokens=1, slots=slots)]


def prefill_points(load: Load, reads: Reads = "slots") -> list[Point]:
    """Where reading the prompt of a load takes place, a point per chunk.

    Where only tokens are read, whole chunks count as many times as there are with as many tokens before them as they
    have in the mean: attention's time is linear in those.
    """
    chunks = chunks_of(load.prompt_tokens)
    if reads == "slots":
        return [Point(batch=load.batch, new_tokens=c, slots=slots_for(load.total_tokens)) for c in chunks]
    wholes = [chunk for chunk in chunks if chunk == PREFILL_CHUNK]
    before = {PREFILL_CHUNK: (len(wholes) - 1) * PREFILL_CHUNK // 2}
    return [
        Point(batch=load.batch, new_tokens=chunk, slots=chunk + before.get(chunk, len(wholes) * PREFILL_CHUNK))
        for chunk in chunks
    ]
