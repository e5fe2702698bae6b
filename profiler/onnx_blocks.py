"""Runs blocks and whole models in ONNX Runtime, to be timed. Blocks are measured as slopes (see `bench`)."""

from collections.abc import Sequence

import numpy as np

from blockwright.compile.cpu_library import operators_in_use
from blockwright.compile.decoder import decoder_graph, stack_graph
from blockwright.compile.session import Binding, Cache, Sequences, Session, make_cache, make_session
from blockwright.compile.slots import slots_now
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.bench import Bench, Run, flavour_of, sample_slopes, stacks_of
from blockwright.profiler.clock import Samples
from blockwright.profiler.points import reads_with
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FFN, Mixer, Model

_NO_LIMIT = 2**31


def sample_variants(bench: Bench, variants: Sequence[Mixer | FFN], point: Point) -> list[Samples]:
    """Times that one copy of each mixer or ffn adds to a model, all in turn."""
    return sample_slopes(bench, [[_stack_run(bench, stack, point) for stack in stacks_of(bench, v)] for v in variants])


def _stack_run(bench: Bench, model: Model, point: Point) -> Run:
    graph = stack_graph(model, random_weights(model), num_positions=point.slots, flavour=flavour_of(bench))
    session = make_session(graph.SerializeToString(), bench.session)
    slots = _slots_held(point, model)
    cache = make_cache(model, point.batch, slots)
    _fill(cache)
    binding = Binding(session, model, cache, (point.batch, point.new_tokens, slots))
    hidden = binding.arrays["hidden_in"]
    hidden[:] = np.random.default_rng(0).standard_normal(hidden.shape)
    binding.place(_starts(point))
    return binding.run


def model_run(bench: Bench, model: Model, point: Point) -> Run:
    """`session_run` of a model with random weights."""
    graph = decoder_graph(model, random_weights(model), num_positions=point.slots, flavour=flavour_of(bench))
    return session_run(make_session(graph.SerializeToString(), bench.session), model, point)


def session_run(session: Session, model: Model, point: Point) -> Run:
    """One step or one prefill chunk of a whole model, choosing the next token included."""
    slots = _slots_held(point, model)
    sequences = Sequences(session, model, point.batch, slots)
    sequences.make_room(slots)
    _fill(sequences.cache)
    if point.new_tokens > 1:
        prompts = [[index % model.vocab_size for index in range(point.new_tokens)]] * point.batch
        if point.slots == point.new_tokens:
            return lambda: sequences.prefill(prompts).argmax(-1)
        return lambda: _read_chunk(session, model, sequences.cache, np.array(prompts), point).argmax(-1)
    ids_B = np.ones(point.batch, dtype=np.int64)

    def step() -> np.ndarray:
        sequences.lengths_B = _starts(point)
        return sequences.step(ids_B).argmax(-1)

    return step


def _read_chunk(session: Session, model: Model, cache: Cache, ids_BT: np.ndarray, point: Point) -> np.ndarray:
    """A chunk of a prompt behind others, bound anew each time as `Sequences` does; its logits, logits_BV."""
    binding = Binding(session, model, cache, (point.batch, point.new_tokens, _slots_held(point, model)))
    binding.arrays["ids"][:] = ids_BT
    binding.arrays["last"][:] = point.new_tokens - 1
    binding.place(_starts(point))
    binding.run()
    return binding.arrays["logits"]


def _slots_held(point: Point, model: Model) -> int:
    """Of the cache: as many as are read, or, where only tokens are, what a cache has that grew to hold them."""
    reads = reads_with(operators_in_use(), "onnxruntime", model)
    return point.slots if reads == "slots" else slots_now(point.slots, _NO_LIMIT)


def _starts(point: Point) -> np.ndarray:
    """Where the new tokens stand: the last ones that are read."""
    return np.full(point.batch, point.slots - point.new_tokens)


def _fill(cache: Cache) -> None:
    generator = np.random.default_rng(0)
    for array in cache.values():
        array[:] = generator.standard_normal(array.shape, dtype=np.float32)
