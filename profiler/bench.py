"""What every runtime's measurements share: what is measured how, and stacks of copies.

The time of a block is a slope: a stack of 2n copies less a stack of n, divided by n. What a stack costs beyond its
copies (entering the runtime, the first norm) falls out, and so does the clock's drift, for both run in turn.
Copies have weights of their own, as layers do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockwright.compile.engine import SessionSettings
from blockwright.compile.flavour import Flavour, FlavourName, best_flavour
from blockwright.hw_profiles.profile import Backend
from blockwright.profiler.clock import Effort, Samples, sample_in_turn
from blockwright.spec import FFN, Attention, Block, Format, GatedFFN, LinearFFN, LinearMixer, Mixer, Model, NoOp

COPIES = 4
"""n: copies in the smaller stack."""

Run = Callable[[], object]
"""Does what is to be timed, once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured how: the runtime, the model that gives the shape, and the runtime's settings."""

    backend: Backend
    weights: Format
    model: Model
    """With its layers in that format."""
    session: SessionSettings
    effort: Effort
    flavour: FlavourName | None = None
    """Of ONNX graphs; None for the one that engines are built in."""


def flavour_of(bench: Bench) -> Flavour:
    """In which operators a bench's graphs are written."""
    name = best_flavour(bench.model) if bench.flavour is None else bench.flavour
    return Flavour(name=name, accuracy_level=bench.session.accuracy_level)


def stacks_of(bench: Bench, variant: Mixer | FFN) -> list[Model]:
    """Two models of nothing but copies of a mixer or an ffn: n of them, and 2n."""
    return [replace(bench.model, layers=(block_of(variant),) * copies) for copies in (COPIES, 2 * COPIES)]


def sample_slopes(bench: Bench, pairs: Sequence[Sequence[Run]]) -> list[Samples]:
    """Times of one copy of each of several things, from the runs of their `stacks_of`, all in turn."""
    runs = [run for pair in pairs for run in pair]
    slopes = np.kron(np.eye(len(pairs)), np.array([-1.0, 1.0]) / COPIES)
    return sample_in_turn(runs, bench.effort, bench.session.num_threads, derive=list(slopes))[len(runs) :]


def block_of(variant: Mixer | FFN) -> Block:
    """A block with nothing beside the variant."""
    match variant:
        case Attention() | LinearMixer():
            return Block(mixer=variant, ffn=NoOp())
        case GatedFFN() | LinearFFN():
            return Block(mixer=NoOp(), ffn=variant)
        case NoOp():
            return Block(mixer=NoOp(), ffn=NoOp())
