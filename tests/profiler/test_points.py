"""Where loads take place, by what attention reads."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.compile.engine import EngineOrder, SessionSettings, write_engine
from blockwright.compile.session import Decoder
from blockwright.compile.slots import PREFILL_CHUNK, chunks_of, slots_for
from blockwright.cost import Load
from blockwright.hw_profiles.device import OPERATORS
from blockwright.hw_profiles.profile import Point, Profile
from blockwright.profiler import onnx_blocks
from blockwright.profiler.cost_model import predict
from blockwright.profiler.onnx_blocks import session_run
from blockwright.profiler.points import decode_points, prefill_points, reads_of
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Model

LOAD = Load(batch=2, prompt_tokens=40, new_tokens=24)


@pytest.fixture(scope="module")
def decoder(made_up_parent: Model, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Weights so large that every token before the new ones shows."""
    folder = tmp_path_factory.mktemp("engine")
    weights = {n: 8 * a if a.ndim == 2 else a for n, a in random_weights(made_up_parent, seed=1).items()}
    session = SessionSettings(num_threads=1)
    order = EngineOrder(
        model=made_up_parent, weights_format=None, num_positions=256, session=session, built_from="random weights"
    )
    write_engine(order, weights, folder)
    return Decoder.open(folder)


@given(prompt=st.integers(1, 9 * PREFILL_CHUNK))
def test_a_prompts_chunks_see_as_many_tokens_as_they_do_one_after_another(prompt: int) -> None:
    points = prefill_points(Load(batch=1, prompt_tokens=prompt, new_tokens=8), "tokens")
    assert [point.new_tokens for point in points] == chunks_of(prompt)
    pairs = sum(p.new_tokens * (p.slots - p.new_tokens) + p.new_tokens * (p.new_tokens + 1) // 2 for p in points)
    assert pairs == prompt * (prompt + 1) // 2
    assert len(set(points)) <= 2, "few places, however long the prompt: each is measured"


@given(prompt=st.integers(1, 4096), new=st.integers(1, 4096))
def test_tokens_are_written_halfway_through_the_new_ones(prompt: int, new: int) -> None:
    load = Load(batch=3, prompt_tokens=prompt, new_tokens=new)
    assert decode_points(load, "tokens") == [Point(batch=3, new_tokens=1, slots=prompt + new // 2)]
    assert decode_points(load, "slots") == [Point(batch=3, new_tokens=1, slots=slots_for(prompt + new))]


def test_a_profile_says_by_its_operators_what_attention_reads(make_profile: Callable[..., Profile]) -> None:
    profile = make_profile([LOAD])
    ours = replace(profile, software={OPERATORS: "blockwright 1"})
    assert [reads_of(profile, "onnxruntime"), reads_of(ours, "onnxruntime"), reads_of(ours, "torch")] == [
        "slots",
        "tokens",
        "slots",
    ]


def test_heads_that_our_attention_does_not_know_read_all_slots(
    make_profile: Callable[..., Profile], made_up_parent: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = replace(made_up_parent, head_dim=20)
    profile = replace(make_profile([LOAD]), software={OPERATORS: "blockwright 1"}, model=odd)
    assert reads_of(profile, "onnxruntime") == "slots"
    assert reads_of(replace(profile, model=None), "onnxruntime") == "slots"
    monkeypatch.setattr(onnx_blocks, "operators_in_use", lambda: "blockwright 1")
    point = Point(batch=1, new_tokens=1, slots=40)
    assert onnx_blocks._slots_held(point, odd) == 40 < onnx_blocks._slots_held(point, made_up_parent)


def test_a_profile_of_our_operators_is_looked_up_where_it_was_measured(
    make_profile: Callable[..., Profile], made_up_parent: Model
) -> None:
    profile = make_profile([LOAD])
    moved = {point: at for point, at in zip(_points("slots"), _points("tokens"), strict=True)}
    ours = replace(
        profile,
        software={OPERATORS: "blockwright 1"},
        times=tuple(replace(row, point=moved[row.point]) for row in profile.times),
        wholes=tuple(replace(row, point=moved[row.point]) for row in profile.wholes),
    )
    before, after = (predict(each, made_up_parent, LOAD) for each in (profile, ours))
    assert after == before


def _points(reads: str) -> list[Point]:
    return [*decode_points(LOAD, reads), *prefill_points(LOAD, reads)]  # type: ignore[arg-type]


@pytest.mark.parametrize("point", [Point(batch=2, new_tokens=1, slots=40), Point(batch=2, new_tokens=16, slots=40)])
def test_what_is_timed_reads_the_tokens_before_the_new_ones(
    point: Point, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits are those of the same tokens behind the same random cache; another start gives others."""
    monkeypatch.setattr(onnx_blocks, "operators_in_use", lambda: "blockwright 1")
    session, model = decoder.session, decoder.engine.model
    held: list[dict[str, np.ndarray]] = []
    fill = onnx_blocks._fill

    def keep(cache: dict[str, np.ndarray]) -> None:
        fill(cache)
        held.append({name: array.copy() for name, array in cache.items()})

    monkeypatch.setattr(onnx_blocks, "_fill", keep)
    found_B = np.asarray(session_run(session, model, point)())
    (cache,) = held
    assert {array.shape[2] for array in cache.values()} == {256}, "as large as a cache that grew to hold them"
    sequences = decoder.start(2, 64)
    sequences.prefill([[1], [1]])

    def behind(start: int) -> np.ndarray:
        for name, array in sequences.cache.items():
            array[:] = cache[name][:, :, : array.shape[2]]
        sequences.lengths_B = np.full(2, start)
        ids = [1] if point.new_tokens == 1 else [index % model.vocab_size for index in range(point.new_tokens)]
        return [sequences.step(np.full(2, token)).argmax(-1) for token in ids][-1]

    assert np.array_equal(found_B, behind(point.slots - point.new_tokens))
    assert any(not np.array_equal(found_B, behind(start)) for start in range(5)), "the start must show"
