"""Runs blocks and whole models in ONNX Runtime, to be timed. Blocks are measured as slopes (see `bench`)."""

from collections.abc import Sequence

import numpy as np

from blockwright.compile.decoder import decoder_graph, stack_graph
from blockwright.compile.runtime import ort
from blockwright.compile.session import Binding, Cache, Sequences, make_cache, make_session
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.bench import Bench, Run, flavour_of, sample_slopes, stacks_of
from blockwright.profiler.clock import Samples
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import FFN, Mixer, Model


def sample_variants(bench: Bench, variants: Sequence[Mixer | FFN], point: Point) -> list[Samples]:
    """Times that one copy of each mixer or ffn adds to a model, all in turn."""
    return sample_slopes(bench, [[_stack_run(bench, stack, point) for stack in stacks_of(bench, v)] for v in variants])


def _stack_run(bench: Bench, model: Model, point: Point) -> Run:
    graph = stack_graph(model, random_weights(model), num_positions=point.slots, flavour=flavour_of(bench))
    session = make_session(graph.SerializeToString(), bench.session)
    cache = make_cache(model, point.batch, point.slots)
    _fill(cache)
    binding = Binding(session, model, cache, (point.batch, point.new_tokens, point.slots))
    hidden = binding.arrays["hidden_in"]
    hidden[:] = np.random.default_rng(0).standard_normal(hidden.shape)
    binding.place(_starts(point))
    return binding.run


def model_run(bench: Bench, model: Model, point: Point) -> Run:
    """`session_run` of a model with random weights."""
    graph = decoder_graph(model, random_weights(model), num_positions=point.slots, flavour=flavour_of(bench))
    return session_run(make_session(graph.SerializeToString(), bench.session), model, point)


def session_run(session: ort.InferenceSession, model: Model, point: Point) -> Run:
    """One step or one prefill chunk of a whole model, choosing the next token included."""
    sequences = Sequences(session, model, point.batch, point.slots)
    sequences.make_room(point.slots)
    _fill(sequences.cache)
    if point.new_tokens > 1:
        prompts = [[index % model.vocab_size for index in range(point.new_tokens)]] * point.batch
        return lambda: sequences.prefill(prompts).argmax(-1)
    ids_B = np.ones(point.batch, dtype=np.int64)

    def step() -> np.ndarray:
        sequences.lengths_B = _starts(point)
        return sequences.step(ids_B).argmax(-1)

    return step


def _starts(point: Point) -> np.ndarray:
    """Where the new tokens stand: at the start in prefill, near the end of the cache when decoding."""
    start = 0 if point.new_tokens > 1 else point.slots - 1
    return np.full(point.batch, start)


def _fill(cache: Cache) -> None:
    generator = np.random.default_rng(0)
    for array in cache.values():
        array[:] = generator.standard_normal(array.shape, dtype=np.float32)
