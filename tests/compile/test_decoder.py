"""The engine's logits, against torch's at every step of a generation."""

from pathlib import Path

import numpy as np
import pytest

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.flavour import FlavourName
from blockwright.compile.slots import FIRST_SLOTS, PREFILL_CHUNK
from blockwright.errors import InputError
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import (
    Block,
    NoOp,
    Rope,
)
from decoder_engines import MODELS, decoder_model, engine_of, in_both_flavours, in_torch, largest_difference, weights_of


@in_both_flavours
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_torch_at_every_step(name: str, flavour: FlavourName, tmp_path: Path) -> None:
    model = MODELS[name]
    weights = weights_of(model)
    decoder = engine_of(tmp_path, model, weights, flavour=flavour)
    assert decoder.engine.flavour == flavour
    difference = largest_difference(decoder, in_torch(model, weights), lengths=[13, 1, 8], num_steps=24)
    assert difference.largest < 1e-4
    assert difference.spread > 0.5


@in_both_flavours
@pytest.mark.parametrize("name", ["llama", "mistral window", "no attention"])
def test_a_prompt_of_several_chunks_is_read_like_one(name: str, flavour: FlavourName, tmp_path: Path) -> None:
    model = MODELS[name]
    weights = weights_of(model)
    decoder = engine_of(tmp_path, model, weights, num_positions=2 * PREFILL_CHUNK + 64, flavour=flavour)
    lengths = [2 * PREFILL_CHUNK + 5, PREFILL_CHUNK, 3, PREFILL_CHUNK + 1]
    assert largest_difference(decoder, in_torch(model, weights), lengths, num_steps=3).largest < 2e-4


@in_both_flavours
def test_the_same_engine_runs_sequences_of_other_lengths_and_numbers(flavour: FlavourName, tmp_path: Path) -> None:
    model = MODELS["llama"]
    weights = weights_of(model)
    decoder, child = engine_of(tmp_path, model, weights, flavour=flavour), in_torch(model, weights)
    for lengths in ([3], [40, 2], [7, 7, 7, 7, 7]):
        assert largest_difference(decoder, child, lengths, num_steps=4).largest < 1e-4


@in_both_flavours
@pytest.mark.parametrize("num_new_tokens", [FIRST_SLOTS - 8, 3 * FIRST_SLOTS])
def test_a_cache_that_grows_keeps_what_it_holds(num_new_tokens: int, flavour: FlavourName, tmp_path: Path) -> None:
    model = MODELS["windows"]
    weights = weights_of(model)
    decoder = engine_of(tmp_path, model, weights, num_positions=4 * FIRST_SLOTS, flavour=flavour)
    lengths = [9, 3]
    assert largest_difference(decoder, in_torch(model, weights), lengths, num_new_tokens).largest < 1e-4
    sequences = decoder.start(1, 4 * FIRST_SLOTS)
    sequences.prefill([[1, 2, 3]])
    before = {array.shape[2] for array in sequences.cache.values()}
    sequences.lengths_B[:] = 2 * FIRST_SLOTS
    sequences.step(np.array([4]))
    assert (before, {array.shape[2] for array in sequences.cache.values()}) == ({FIRST_SLOTS}, {4 * FIRST_SLOTS})


def test_what_is_nothing_leaves_no_node_and_no_cache() -> None:
    names = [
        value.name
        for value in decoder_graph(decoder_model(), random_weights(decoder_model()), num_positions=64).graph.input
    ]
    assert {name for name in names if name.startswith("past_key")} == {"past_key_1", "past_key_3", "past_key_5"}
    model = decoder_model(layers=(Block(mixer=NoOp(), ffn=NoOp()),) * 7)
    graph = decoder_graph(model, random_weights(model), num_positions=64).graph
    empty = decoder_graph(decoder_model(layers=()), random_weights(decoder_model(layers=())), num_positions=64).graph
    assert [node.name for node in graph.node] == [node.name for node in empty.node]
    assert [value.name for value in graph.input] == ["ids", "last"]


def test_positions_scaled_in_an_unknown_way_are_refused() -> None:
    model = decoder_model(rope=Rope(theta=1e4, scaling="dynamic", parameters=(("factor", 4.0),)))
    with pytest.raises(InputError, match="dynamic"):
        decoder_graph(model, random_weights(model), num_positions=64)
